"""The native engine: methods run by ExecuTorch's C++ runtime without Python's lock, so that
different methods run at the same time.

Who may run beside whom: a method is run by one thread at a time. Methods that have state in common
take turns, since each finds it as the last one left it; so do those that share packed weights
(`sharing.py`), and those on one backend that is not a part of ExecuTorch, whose libraries nobody
has promised to be safe there. All others overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpack.multimethod.runtime.chatter import caught
from mmpack.multimethod.runtime.contexts import Contexts
from mmpack.multimethod.runtime.engine import Engine, Run, external, runtime
from mmpack.multimethod.runtime.facts import Facts
from mmpack.multimethod.runtime.graph import Call, Graph
from mmpack.multimethod.runtime.image import Image
from mmpack.multimethod.runtime.looks import REMEMBERED, Looks
from mmpack.multimethod.runtime.native.build import build, extension
from mmpack.multimethod.runtime.native.graph import NativeGraph
from mmpack.multimethod.runtime.native.sharing import state_groups, weight_groups


class NativeEngine(Engine):
    """See `Engine`. Every method has memory of its own for what it computes, and shares that for
    state with the others, as in the stock engine. Raises TargetError if it cannot be built."""

    _program: Any
    _methods: dict[str, Any]

    def __init__(
        self,
        image: Image,
        contexts: Contexts,
        facts: Mapping[str, Facts],
        alone: Collection[str] = (),
    ) -> None:
        with caught():
            runtime()  # whose backends and kernels it uses
        self._extension = extension(build())
        self._number = next(_numbers)
        self._packed = weight_groups(facts)
        self._groups = state_groups(facts)
        self._locks = {group: self._extension.Lock() for group in set(self._groups.values())}
        super().__init__(image, contexts, facts, alone)

    def _open(self, program: Path | bytes) -> None:
        self._methods = {}
        self._bytes = program  # which the extension refers to, if it is them
        programs = self._extension.Program
        data = "" if self._data is None else str(self._data)
        if isinstance(program, bytes):
            self._program = programs.from_bytes(program, data)
        else:
            self._program = programs.from_file(str(program), data)

    def _load(self, name: str) -> Run:
        shared = [self._locks[self._groups[name]]] if name in self._groups else []
        for backend in external(self._facts[name].backends):  # in their order, which is one for all
            shared.append(_backend_locks.setdefault(backend.name, self._extension.Lock()))
        packed = self._packed.get(name)
        method = self._extension.Method(
            program=self._program,
            name=name,
            locks=shared,
            one_thread=name in self.alone,
            weights="" if packed is None else f"mmpack/{self._number}/{packed}",
        )
        self._methods[name] = method
        return method.run  # type: ignore[no-any-return]

    def looks(self) -> Looks:
        return Looks(*self._extension.looks(most=REMEMBERED))

    def graph(self, calls: Sequence[Call]) -> Graph | None:
        names = list(dict.fromkeys(call.method for call in calls if call.method is not None))
        for name in names:
            self.method(name)
        if not all(self._methods[name].rows for name in names):
            return None  # the others' memory is laid out as only their callers know
        return NativeGraph(self._extension, names, self._methods, calls)

    def _free(self, name: str) -> None:
        self._methods.pop(name).unload()

    def _close(self) -> None:
        for method in self._methods.values():
            method.unload()
        self._methods.clear()
        self._program = None


_backend_locks: dict[str, Any] = {}
"""One for each backend that is not a part of ExecuTorch."""

_numbers = itertools.count()
"""Of engines: no two share packed weights, whichever program they run."""
