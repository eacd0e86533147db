"""ExecuTorch's own Python runtime, imported without ExecuTorch's compiler.

`executorch.runtime` needs no more of `executorch.exir` than a class of warnings, but whoever
imports a module of a package imports the package; this one brings torch's compilers, sympy and
torchao. That is three seconds for a program that is to be run and not built.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it makes remarks when it is imported
    from executorch.runtime import Runtime

COMPILER = "executorch.exir"
BINDING = "executorch.extension.pybindings.portable_lib"


def binding() -> ModuleType:
    """What ExecuTorch's C++ side offers Python: `portable_lib`. ImportError without ExecuTorch."""
    if BINDING not in sys.modules:
        with _hollow(COMPILER):
            importlib.import_module(BINDING)
    return sys.modules[BINDING]


def stock_runtime() -> Runtime:
    """The runtime that all of a process has in common. ImportError without ExecuTorch."""
    binding()
    from executorch.runtime import Runtime

    return Runtime.get()


@contextmanager
def _hollow(package: str) -> Iterator[None]:
    """Modules of a package that has not been imported yet can be imported without it: meanwhile an
    empty one is in its place, which finds them where it would."""
    found = find_spec(package) if package not in sys.modules else None
    if found is None or found.submodule_search_locations is None:
        yield
        return
    empty = ModuleType(package)
    empty.__path__ = list(found.submodule_search_locations)
    sys.modules[package] = empty
    try:
        yield
    finally:
        del sys.modules[package]
