"""The stock engine: methods run by `executorch.runtime`, unchanged.

`Runtime.load_program` gives all methods of a program one set of arenas, each as large as the
largest method's. That is what makes shared state shared, since the linker puts it at one place of
memory id 2 in every method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmpack.multimethod.errors import ExecutionError
from mmpack.multimethod.runtime.chatter import caught

with caught():  # importing the runtime makes it look at the CPU, and say so
    from executorch.runtime import Runtime

Run = Callable[[Sequence[Any]], list[Any]]
"""Inputs in call order -> outputs in order. Outputs are copies, owned by the caller."""

T = TypeVar("T")


class StockEngine:
    """One loaded program. `method(name)` loads that method and returns the callable that runs it.

    Raises ExecutionError if ExecuTorch does not take the program or a method: most often because
    a backend that the method was lowered to is not in this process.
    """

    def __init__(self, path: Path) -> None:
        self._program = _loaded(str(path), lambda: Runtime.get().load_program(path))

    def method(self, name: str, backends: Sequence[str]) -> Run:
        registry = Runtime.get().backend_registry
        missing = [b for b in backends if not registry.is_available(b)]
        if missing:
            known = ", ".join(sorted(registry.registered_backend_names))
            raise ExecutionError(
                f"{name}: this runtime has no {' and no '.join(missing)} (it has: {known}); "
                "`mmpack doctor` says what would change that"
            )
        method = _loaded(name, lambda: self._program.load_method(name))
        assert method is not None
        return method.execute  # type: ignore[no-any-return]


def _loaded(what: str, load: Callable[[], T]) -> T:
    with caught() as printed:
        try:
            return load()
        except RuntimeError as error:
            reason = "\n  ".join([str(error), *printed().splitlines()])
            raise ExecutionError(f"{what}: ExecuTorch does not load it: {reason}") from error
