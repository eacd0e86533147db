"""A program on disk -> its methods, called by name.

methods = Methods.load("model.pte")
q, k, v = methods.run_method("qkv_proj", hidden)
print(methods.signature("attention"))
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from mmpack.multimethod.errors import CallError, nearest
from mmpack.multimethod.link import Manifest, open_program, read_manifest
from mmpack.multimethod.link.data_file import DataFile
from mmpack.multimethod.link.files import file_extents
from mmpack.multimethod.link.outside import attach, place_of
from mmpack.multimethod.runtime.contexts import Contexts, read_contexts
from mmpack.multimethod.runtime.engine import Engine, Run, loadable
from mmpack.multimethod.runtime.engines import EngineName, Threads, choose
from mmpack.multimethod.runtime.facts import Facts, read_facts
from mmpack.multimethod.runtime.files import Files
from mmpack.multimethod.runtime.graph import Call, Graph
from mmpack.multimethod.runtime.image import Image
from mmpack.multimethod.runtime.lanes import alone, lane_of
from mmpack.multimethod.runtime.method import Method
from mmpack.multimethod.runtime.parts import Part, Tree, find, sized, tree
from mmpack.multimethod.runtime.program_graph import ProgramGraph
from mmpack.multimethod.signature import Signature


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
        threads: Threads = None,
    ) -> None:
        self.path = image.source
        self.manifest = manifest
        self.files = files
        self._facts = facts
        self._contexts = contexts
        self._image = image
        self._loading = threading.RLock()
        self._engine = engine(image, contexts, facts, alone(self.path, self.lanes, threads))
        self._methods = {
            name: Method(fact, lambda name=name: self._load(name), self._engine.looks())  # type: ignore[misc]
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
        threads: Threads = None,
        data: str | Path | None = None,
    ) -> Self:
        """Load any ExecuTorch program; `flow.program.load` says all about it, `Image` what
        `on_disk` does."""
        runs = choose(engine, threads)
        image = Image(Path(path), mmap=mmap, on_disk=on_disk)

        def opened(place: Path) -> DataFile:
            image.data = Image(place, mmap=mmap, on_disk=on_disk, kind=".ptd")
            return DataFile.open(place, image.data.fd)

        given = opened(Path(data)) if data is not None else None
        with open_program(image.source, fd=image.fd, data=given) as file:
            manifest = read_manifest(file)
            if given is None and (place := place_of(image.source, manifest)) is not None:
                given = opened(place)
            attach(file, manifest, given)
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
        return method.call(args, kwargs)

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
            self._image, self._contexts, self._facts, self._engine.alone
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

    @cached_property
    def lanes(self) -> dict[str, str]:
        """The processor that each method occupies while it runs."""
        records = self.manifest.methods if self.manifest is not None else {}
        return {name: lane_of(records.get(name), f.backends) for name, f in self._facts.items()}

    def _unknown(self, name: str) -> CallError:
        return CallError(f"{self.path}: no method {name!r}{nearest(name, self._methods)}")
