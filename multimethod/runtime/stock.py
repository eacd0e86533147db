"""The stock engine: methods run by `executorch.runtime`, unchanged.

`Runtime.load_program` gives all methods of a program one set of arenas, each as large as the
largest method's. That is what makes shared state shared, since the linker puts it at one place of
memory id 2 in every method.
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, TypeVar
from weakref import WeakSet

from mmpack.multimethod.errors import ExecutionError
from mmpack.multimethod.runtime.chatter import caught
from mmpack.multimethod.runtime.contexts import Contexts, renamed
from mmpack.multimethod.runtime.failures import with_names
from mmpack.multimethod.runtime.image import Image
from mmpack.multimethod.runtime.kernels import require_kernels, without_kernel
from mmpack.multimethod.targets import BACKENDS, Backend

with caught():  # its imports make remarks
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count
    from executorch.runtime import Method, Runtime

Run = Callable[[Sequence[Any]], list[Any]]
"""Inputs in call order -> outputs in order. Outputs are copies, owned by the caller."""

T = TypeVar("T")


class StockEngine:
    """One loaded program. `method(name)` loads that method and returns the callable that runs it.

    contexts: those of the program, see `contexts.py`.

    Raises ExecutionError if ExecuTorch does not take the program or a method: most often because
    a backend that the method was lowered to is not in this process.
    """

    def __init__(self, image: Image, contexts: Contexts) -> None:
        with _registering:
            taken = [name for engine in list(_living) for name in engine._contexts.values()]
            own = renamed(image.path, contexts, taken)
            # New names are nobody else's.
            self._contexts: Contexts = {} if own is not None else contexts
            _living.add(self)
        self._talks = False
        self._methods: dict[str, Method] = {}
        self._backends: dict[str, Sequence[str]] = {}
        self._program = _loaded(
            str(image.source), lambda: _runtime().load_program(own or image.path)
        )

    def method(self, name: str, backends: Sequence[str], operators: Sequence[str]) -> Run:
        missing = missing_backends(backends)
        if missing:
            known = ", ".join(sorted(Runtime.get().backend_registry.registered_backend_names))
            raise ExecutionError(
                f"{name}: this runtime has no {' and no '.join(missing)} (it has: {known}); "
                "`mmpack doctor` says what would change that"
            )
        method = _loaded(
            name, lambda: self._prepared(name, backends, operators), _external(backends)
        )
        self._methods[name] = method
        self._backends[name] = backends
        return method.execute  # type: ignore[no-any-return]

    def unload(self, name: str) -> None:
        """Free what ExecuTorch holds for one method, if it is loaded. Calling it afterwards is an
        error."""
        method = self._methods.pop(name, None)
        if method is not None:
            with caught() if self._talks else nullcontext():
                method._method = None
                self._program._methods[name] = None
            del self._backends[name]

    def release(self) -> None:
        """Free what ExecuTorch holds for this program, its methods' memory with it. Calling one
        of them afterwards is an error."""
        with caught() if self._talks else nullcontext():
            for method in self._methods.values():
                method._method = None
            self._program._program = None
            self._program._methods.clear()
        self._contexts = {}
        self._backends.clear()

    def __del__(self) -> None:
        if not sys.is_finalizing() and hasattr(self, "_program"):
            self.release()

    def _prepared(self, name: str, backends: Sequence[str], operators: Sequence[str]) -> Method:
        require_kernels(name, operators)
        for backend in _external(backends):
            self._talks = True
            backend.prepare_runtime()
        method = self._program.load_method(name)
        assert method is not None
        return method


_living: WeakSet[StockEngine] = WeakSet()
_registering = threading.Lock()


@atexit.register
def _release_all() -> None:
    """Before the interpreter takes the libraries apart that the programs are in; and the terminal
    is no place for backends' farewells at the end of the process either."""
    for engine in list(_living):
        if hasattr(engine, "_program"):
            engine.release()


def missing_backends(backends: Sequence[str]) -> list[str]:
    """Those of some backends that are not in this process."""
    registry = Runtime.get().backend_registry
    return [name for name in backends if not registry.is_available(name)]


def loadable(backends: Sequence[str], operators: Sequence[str]) -> bool:
    """Whether this process has, or can get, all that some backends and operators need."""
    if missing_backends(backends) or not all(b.available().runs for b in _external(backends)):
        return False
    with caught():
        return not without_kernel(operators)


def _external(backends: Sequence[str]) -> list[type[Backend]]:
    return [b for b in BACKENDS.values() if b.external and b.delegate in backends]


def _count_loaded(backend: type[Backend]) -> int:
    """How many methods with a delegate of this backend the process has loaded."""
    loaded = [used for engine in list(_living) for used in engine._backends.values()]
    return sum(backend.delegate in used for used in loaded)


@cache
def _runtime() -> Runtime:
    """The runtime, with its thread pool made. Whatever made that later, in the middle of some
    call, would have it tell the terminal about the CPU."""
    _threadpool_get_thread_count()
    return Runtime.get()


def _loaded(what: str, load: Callable[[], T], backends: Sequence[type[Backend]] = ()) -> T:
    with caught() as printed:
        try:
            try:
                return load()
            except RuntimeError:
                if not any(backend.full(printed()) for backend in backends):
                    raise
                gc.collect()  # programs that nobody refers to any more may hold the room
                return load()
        except RuntimeError as error:
            for backend in backends:
                if (full := backend.full(printed())) is not None:
                    raise ExecutionError(
                        f"{what}: {full}; {_count_loaded(backend)} methods are loaded: free some "
                        "(`program.unload(name)`), or run them in several processes"
                    ) from error
            reason = "\n  ".join([with_names(str(error)), *printed().splitlines()])
            raise ExecutionError(f"{what}: ExecuTorch does not load it: {reason}") from error
