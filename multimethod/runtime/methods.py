"""A program on disk -> its methods, called by name.

methods = Methods.load("model.pte")
q, k, v = methods.run_method("qkv_proj", hidden)
print(methods.signature("attention"))
"""

from __future__ import annotations

import itertools
import keyword
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from mmpack.multimethod.errors import CallError, MmpackError, nearest
from mmpack.multimethod.link import Manifest, open_program, read_manifest
from mmpack.multimethod.link.files import file_extents
from mmpack.multimethod.runtime.arguments import Arguments
from mmpack.multimethod.runtime.contexts import Contexts, read_contexts
from mmpack.multimethod.runtime.engine import Engine, Run, loadable
from mmpack.multimethod.runtime.engines import EngineName, choose
from mmpack.multimethod.runtime.facts import Facts, read_facts
from mmpack.multimethod.runtime.failures import explained
from mmpack.multimethod.runtime.files import Files
from mmpack.multimethod.runtime.given import Given
from mmpack.multimethod.runtime.graph import Call, CallsFailed, Graph, Ran, Rows
from mmpack.multimethod.runtime.image import Image
from mmpack.multimethod.runtime.parts import Part, Tree, find, sized, tree
from mmpack.multimethod.signature import Signature

_calls = itertools.count(1)
"""Numbers of calls, of all programs' methods with state."""


class Method:
    """One method of a loaded program: call it with tensors, by position or by name.

    It is loaded into the runtime at its first call. The result is a named tuple, also for a
    single output; its tensors belong to the caller and no later call changes them.

    out: tensors of the caller's that the outputs are to be in, one or None for each (a tensor, if
    there is one output). The native engine has a method with `io: caller` write right there, if the
    tensor has the output's largest size; in all other cases the result is copied once. They must
    not share memory with inputs. A method that has an input called `out` takes none.

    ranges: input -> least and largest integer that it was verified with.
    last_call: of a method that keeps state, a number that no other call has; 0 before the first.
    """

    def __init__(self, facts: Facts, load: Callable[[], Run]) -> None:
        self.last_call = 0
        self._keeps = facts.keeps
        self._names = frozenset(value.name for value in facts.signature.inputs)
        self.signature = facts.signature
        self.ranges = facts.ranges
        self._load = load
        self._run: Run | None = None
        self._arguments = Arguments(facts.signature, facts.channels_last)
        self._result = _result_type(facts.signature)
        self._given = Given(facts.signature)

    @property
    def name(self) -> str:
        return self.signature.method

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        out = self._out(kwargs) if "out" in kwargs else None
        inputs = self._arguments.accept(args, kwargs)
        given = None if out is None else self._given.accept(out, inputs)
        run = self._run or self.prepare()
        if self._keeps:
            self.last_call = next(_calls)
        try:
            if given is not None:
                return self._result(self._given.fill(given, run(inputs, given)))
            return self._result(run(inputs))
        except RuntimeError as error:
            raise self.explain(error, inputs) from error

    def admits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether it can be called so."""
        self._out(kwargs := dict(kwargs))
        try:
            self._arguments.accept(args, kwargs)
        except CallError:
            return False
        return True

    def _out(self, kwargs: dict[str, Any]) -> Any:
        """What is given for outputs, taken from among the inputs."""
        return None if "out" in self._names else kwargs.pop("out", None)

    def prepare(self) -> Run:
        """Load the method into the runtime now rather than at its first call."""
        if self._run is None:
            self._run = self._load()
        return self._run

    def begin(self) -> None:
        """Have it loaded, for a call by other ways than this one."""
        self.prepare()
        if self._keeps:
            self.last_call = next(_calls)

    def explain(self, error: Exception, inputs: Sequence[Any]) -> MmpackError:
        """The failure of a call with these inputs (None for one that is not known), in words."""
        return explained(error, self.signature, self.ranges, inputs)

    def forget(self) -> None:
        """Have the next call load the method anew, with its state as it was at the beginning."""
        self._run = None
        self.last_call = 0

    def __repr__(self) -> str:
        return str(self.signature)


class Methods:
    """The methods of one program, by name, in the program's order; `methods.layers[0].attention`
    is the method `layers.0.attention` (`parts.py`).

    files: those that travel inside it: name -> bytes, read when they are asked for.
    """

    def __init__(
        self,
        image: Image,
        facts: Mapping[str, Facts],
        manifest: Manifest | None,
        contexts: Contexts,
        files: Files,
        engine: type[Engine],
        threads: int | None = None,
    ) -> None:
        self.path = image.source
        self.manifest = manifest
        self.files = files
        self._facts = facts
        self._contexts = contexts
        self._image = image
        self._loading = threading.RLock()
        self._engine = engine(image, contexts, facts, threads)
        self._methods = {
            name: Method(fact, lambda name=name: self._load(name))  # type: ignore[misc]
            for name, fact in facts.items()
        }

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mmap: bool = False,
        on_disk: bool = False,
        engine: EngineName = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load any ExecuTorch program; `flow.program.load` says all about it, `Image` what
        `on_disk` does."""
        runs = choose(engine, threads)
        image = Image(Path(path), mmap=mmap, on_disk=on_disk)
        with open_program(image.source, fd=image.fd) as file:
            manifest = read_manifest(file)
            facts = read_facts(file, manifest)
            contexts = read_contexts(file)
            files = Files(image, file_extents(file))
        return cls(image, facts, manifest, contexts, files, runs, threads)

    @property
    def method_names(self) -> tuple[str, ...]:
        """Names of all methods, constant ones included, in the program's order."""
        return tuple(self._methods)

    @cached_property
    def parts(self) -> Tree:
        """What the methods' dotted names begin with, each with the parts that come next."""
        return tree(self._methods)

    @property
    def constants(self) -> dict[str, int | float | bool | str]:
        """The values of the program's constant methods (those that the manifest lists)."""
        return dict(self.manifest.constants) if self.manifest is not None else {}

    def signature(self, name: str) -> Signature:
        """A method's signature; printed, it reads like a function's."""
        return self[name].signature

    def run_method(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method with tensors by position or by name, and `out=` as in `Method`; returns a
        named tuple. Where several
        are sizes of one, as `attention.chunk` and `attention.one`, `attention` is the one whose
        signature admits the arguments.

        Raises CallError, before anything runs, if there is no such method or the signature does
        not admit the arguments; CallError, too, if ExecuTorch fails and integers of an input are
        beyond the range that it was verified with; else ExecutionError with ExecuTorch's reason.
        """
        method = self._methods.get(name)
        if method is None:
            if name not in self.parts:
                raise self._unknown(name)
            method = sized(self, name, args, kwargs)
        return method(*args, **kwargs)

    def graph(self, calls: Sequence[Call]) -> Graph | None:
        """Calls of its methods that its engine runs as a whole, without the checks of signatures
        that other calls have; None if it cannot. Failures are in words, as in other calls."""
        made = ProgramGraph(self, calls)
        return made if made.possible else None

    def last_call(self, name: str) -> int:
        """What tells whether somebody else has called a method with state: see `Method`."""
        return self[name].last_call

    def unload(self, name: str) -> None:
        """Free what a method takes while it is loaded; its next call loads it anew. One that keeps
        state stays, since that would be lost. Raises CallError if there is no such method."""
        method = self[name]
        if not self._facts[name].keeps:
            method.forget()
            self._engine.unload(name)

    def reset(self) -> None:
        """Put every state buffer back to its initial value, by loading anew what was loaded
        first, whatever has become of the file."""
        for method in self._methods.values():
            method.forget()
        self._engine.release()
        self._engine = type(self._engine)(
            self._image, self._contexts, self._facts, self._engine.threads
        )

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            raise self._unknown(name)
        return self._methods[name]

    def __getattr__(self, name: str) -> Part | Method:
        # Before `_methods` is there, and for what Python asks of any object, there is nothing.
        if name.startswith("__") or "_methods" not in self.__dict__:
            raise AttributeError(name)
        return find(self, "", name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *filter(str.isidentifier, self.parts[""])]

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def __repr__(self) -> str:
        return "\n".join([f"{self.path}:", *(f"  {m!r}" for m in self._methods.values())])

    def _load(self, name: str) -> Run:
        # Loading a method writes the initial values of its state. So all methods that have state
        # are loaded before the first of them runs: later, it would undo what that one wrote. One
        # that this process cannot load at all is no danger.
        with self._loading:
            run = self._engine.method(name)
            if self._facts[name].stateful:
                for other, facts in self._facts.items():
                    if facts.stateful and loadable(facts.backends, facts.operators):
                        self._engine.method(other)
            return run

    def _unknown(self, name: str) -> CallError:
        return CallError(f"{self.path}: no method {name!r}{nearest(name, self._methods)}")


class ProgramGraph:
    """Calls of a program's methods, whatever becomes of its engine and of the methods in it."""

    def __init__(self, methods: Methods, calls: Sequence[Call]) -> None:
        self._methods = methods
        self._calls = calls
        self._names = list(dict.fromkeys(c.method for c in calls if c.method is not None))
        self._graph = self._made()

    @property
    def possible(self) -> bool:
        return self._graph is not None

    def run(self, tensors: Sequence[Tensor], ranks: Sequence[int], **how: Any) -> list[Ran]:
        if self._methods._engine is not self._engine:
            self._graph = self._made()
        assert self._graph is not None
        for name in self._names:
            self._methods[name].begin()
        try:
            return self._graph.run(tensors, ranks, **how)
        except CallsFailed as failed:
            call = self._calls[failed.call]
            method = self._methods[call.method or ""]
            inputs = [
                tensors[i.tensor].narrow(i.axis, i.start, i.length) if isinstance(i, Rows) else None
                for i in call.inputs
            ]
            raise CallsFailed(failed.call, method.explain(failed.error, inputs)) from failed.error

    def _made(self) -> Graph | None:
        for name in self._names:
            self._methods[name].prepare()
        self._engine = self._methods._engine
        return self._engine.graph(self._calls)


def _result_type(signature: Signature) -> Callable[[list[Any]], Any]:
    """The named tuple of a method's outputs, made from a list of them."""
    names = [v.name for v in signature.outputs]
    usable = all(n.isidentifier() and not keyword.iskeyword(n) for n in names)
    title = "".join(c if c.isalnum() else "_" for c in f"{signature.method}_outputs")
    made = namedtuple(  # type: ignore[misc]
        title if title.isidentifier() else f"_{title}",
        names if usable else [f"out_{i}" for i in range(len(names))],
        rename=True,
    )
    return made._make
