"""The stock engine: methods run by `executorch.runtime`, unchanged.

`Runtime.load_program` gives all methods of a program one set of arenas, each as large as the
largest method's. That is what makes shared state shared, since the linker puts it at one place of
memory id 2 in every method.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmpack.multimethod.runtime.engine import Engine, Run, runtime
from mmpack.multimethod.runtime.failures import heard

if TYPE_CHECKING:  # it makes remarks when it is imported
    from executorch.runtime import Method, Program


class StockEngine(Engine):
    """See `Engine`. One method runs at a time, since the runtime holds the GIL meanwhile, and
    in all of the pool."""

    _program: Program
    _methods: dict[str, Method]

    def _open(self, program: Path | bytes) -> None:
        self._methods = {}
        self._program = runtime().load_program(program, data_path=self._data)

    def _load(self, name: str) -> Run:
        method = self._methods[name] = self._program.load_method(name)
        return heard(method.execute)

    def _free(self, name: str) -> None:
        self._methods.pop(name)._method = None
        self._program._methods[name] = None

    def _close(self) -> None:
        for method in self._methods.values():
            method._method = None
        self._methods.clear()
        self._program._program = None
        self._program._methods.clear()
