"""One method of a loaded program, as its caller sees it."""

from __future__ import annotations

import itertools
import keyword
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mmpack.multimethod.errors import CallError, MmpackError
from mmpack.multimethod.runtime.arguments import Arguments
from mmpack.multimethod.runtime.engine import Run
from mmpack.multimethod.runtime.facts import Facts
from mmpack.multimethod.runtime.failures import explained
from mmpack.multimethod.runtime.given import Given
from mmpack.multimethod.runtime.looks import Looks
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

    def __init__(self, facts: Facts, load: Callable[[], Run], looks: Looks) -> None:
        self.last_call = 0
        self._keeps = facts.keeps
        self._names = frozenset(value.name for value in facts.signature.inputs)
        self.signature = facts.signature
        self.ranges = facts.ranges
        self._load = load
        self._run: Run | None = None
        self._arguments = Arguments(facts.signature, facts.channels_last, looks)
        self._known = self._arguments.known
        self._result = _result_type(facts.signature)
        self._given = Given(facts.signature)

    @property
    def name(self) -> str:
        return self.signature.method

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.call(args, kwargs)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same for a caller that has been given them so; kwargs are its to change."""
        out = self._out(kwargs) if "out" in kwargs else None
        plain = not kwargs and self._known(args)
        inputs = args if plain else self._arguments.accept(args, kwargs)
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
    # As its `_make` does, which is written in Python.
    return partial(tuple.__new__, made)
