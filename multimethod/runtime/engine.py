"""What runs the methods of one program, and what all engines have in common: what a method needs of
the process before it is loaded, and what is said when ExecuTorch does not load it.

An engine is a subclass of `Engine`: the stock one (`stock.py`), the native one (`native/`).
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from mmpack.multimethod.errors import ExecutionError
from mmpack.multimethod.runtime.chatter import caught
from mmpack.multimethod.runtime.contexts import Contexts, renamed
from mmpack.multimethod.runtime.facts import Facts
from mmpack.multimethod.runtime.failures import with_names
from mmpack.multimethod.runtime.graph import Call, Graph
from mmpack.multimethod.runtime.image import Image
from mmpack.multimethod.runtime.kernels import require_kernels, without_kernel
from mmpack.multimethod.runtime.looks import Looks, looks
from mmpack.multimethod.stock_runtime import binding, stock_runtime
from mmpack.multimethod.targets import BACKENDS, Backend

with caught():  # its imports make remarks
    binding()
if TYPE_CHECKING:
    from executorch.runtime import Runtime

Run = Callable[..., list[Any]]
"""Inputs in call order, and perhaps the caller's tensors for outputs -> outputs in order, which are
the caller's own: those tensors, if the engine could have them written to, or new ones. A failure
is a RuntimeError: ExecuTorch's answer, then the lines that it printed."""

T = TypeVar("T")


class Engine(ABC):
    """One loaded program. `method(name)` loads that method, if it is not, and returns the callable
    that runs it.

    contexts: those of the program, see `contexts.py`. facts: of all its methods. alone: those that
    run in the thread that calls them; the others in all of ExecuTorch's pool.

    Raises ExecutionError if ExecuTorch does not take the program or a method: most often because
    a backend that the method was lowered to is not in this process.
    """

    def __init__(
        self,
        image: Image,
        contexts: Contexts,
        facts: Mapping[str, Facts],
        alone: Collection[str] = (),
    ) -> None:
        self._facts = facts
        self.alone = alone
        with _registering:
            taken = [name for engine in list(_living) for name in engine._contexts.values()]
            own = renamed(image.path, contexts, taken)
            # New names are nobody else's.
            self._contexts: Contexts = {} if own is not None else contexts
            _living.add(self)
        self._talks = False
        self._runs: dict[str, Run] = {}
        self._image = image  # whose bytes are there as long as it is
        self._data = image.data.path if image.data is not None else None
        _loaded(str(image.source), lambda: self._open(own or image.path))
        self._is_open = True

    def method(self, name: str) -> Run:
        if (run := self._runs.get(name)) is not None:
            return run
        backends = self._facts[name].backends
        missing = missing_backends(backends)
        if missing:
            known = ", ".join(sorted(stock_runtime().backend_registry.registered_backend_names))
            raise ExecutionError(
                f"{name}: this runtime has no {' and no '.join(missing)} (it has: {known}); "
                "`mmpack doctor` says what would change that"
            )
        run = _loaded(name, lambda: self._prepared(name), external(backends))
        self._runs[name] = run
        return run

    def looks(self) -> Looks:
        """What remembers the inputs of one method's calls."""
        return looks()

    def graph(self, calls: Sequence[Call]) -> Graph | None:
        """Calls that it can run as a whole, their methods loaded; None if it cannot."""
        return None

    def unload(self, name: str) -> None:
        """Free what ExecuTorch holds for one method, if it is loaded. Calling it afterwards is an
        error."""
        if self._runs.pop(name, None) is not None:
            with caught() if self._talks else nullcontext():
                self._free(name)

    def release(self) -> None:
        """Free what ExecuTorch holds for this program, its methods' memory with it. Calling one
        of them afterwards is an error."""
        if not self._is_open:
            return
        self._is_open = False
        with caught() if self._talks else nullcontext():
            self._close()
        self._contexts = {}
        self._runs.clear()

    def __del__(self) -> None:
        if not sys.is_finalizing() and hasattr(self, "_is_open"):
            self.release()

    def _prepared(self, name: str) -> Run:
        require_kernels(name, self._facts[name].operators)
        for backend in external(self._facts[name].backends):
            self._talks = True
            backend.prepare_runtime()
        return self._load(name)

    @abstractmethod
    def _open(self, program: Path | bytes) -> None:
        """Load the program itself, and the file at `_data`, which has what it keeps outside, if it
        does. ExecuTorch's failures are RuntimeErrors, here and below."""

    @abstractmethod
    def _load(self, name: str) -> Run: ...

    @abstractmethod
    def _free(self, name: str) -> None:
        """Free a method that was loaded."""

    @abstractmethod
    def _close(self) -> None:
        """Free all."""


_living: WeakSet[Engine] = WeakSet()
_registering = threading.Lock()


@atexit.register
def _release_all() -> None:
    """Before the interpreter takes the libraries apart that the programs are in; and the terminal
    is no place for backends' farewells at the end of the process either."""
    for engine in list(_living):
        if hasattr(engine, "_is_open"):
            engine.release()


def missing_backends(backends: Sequence[str]) -> list[str]:
    """Those of some backends that are not in this process."""
    registry = stock_runtime().backend_registry
    return [name for name in backends if not registry.is_available(name)]


def loadable(backends: Sequence[str], operators: Sequence[str]) -> bool:
    """Whether this process has, or can get, all that some backends and operators need."""
    if missing_backends(backends) or not all(b.available().runs for b in external(backends)):
        return False
    with caught():
        return not without_kernel(operators)


def external(backends: Sequence[str]) -> list[type[Backend]]:
    """Those of some backends that are not a part of ExecuTorch."""
    return [b for b in BACKENDS.values() if b.external and b.delegate in backends]


@cache
def runtime() -> Runtime:
    """The stock runtime, with its thread pool made. Whatever made that later, in the middle of
    some call, would have it tell the terminal about the CPU."""
    binding()._threadpool_get_thread_count()
    return stock_runtime()


def _count_loaded(backend: type[Backend]) -> int:
    """How many methods with a delegate of this backend the process has loaded."""
    loaded = [engine._facts[name].backends for engine in list(_living) for name in engine._runs]
    return sum(backend.delegate in used for used in loaded)


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
