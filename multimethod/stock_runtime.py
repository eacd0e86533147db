"""ExecuTorch's own Python runtime, imported without ExecuTorch's compiler.

`executorch.runtime` needs no more of `executorch.exir` than a class of warnings, but whoever
imports a module of a package imports the package; this one brings torch's compilers, sympy and
torchao. That is three seconds for a program that is to be run and not built.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it makes remarks when it is imported
    from executorch.runtime import Runtime

PACKAGE, COMPILER, WARNINGS = "executorch", "executorch.exir", "executorch.exir._warnings"
BINDING = "executorch.extension.pybindings.portable_lib"

_importing = threading.Lock()


def binding() -> ModuleType:
    """What ExecuTorch's C++ side offers Python: `portable_lib`. ImportError without ExecuTorch."""
    with _importing:
        if BINDING not in sys.modules and COMPILER not in sys.modules:
            with _warnings_alone():
                import_module(BINDING)
    return import_module(BINDING)  # which waits, if another thread is at it


def stock_runtime() -> Runtime:
    """The runtime that all of a process has in common. ImportError without ExecuTorch."""
    binding()
    from executorch.runtime import Runtime

    return Runtime.get()


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """Meanwhile `import executorch.exir._warnings as name` finds that module, and does not import
    the package that it is in. Whoever imports the package gets it, also from another thread."""
    package = import_module(PACKAGE)
    found = find_spec(COMPILER)
    places = found.submodule_search_locations if found is not None else None
    spec = PathFinder.find_spec(WARNINGS, places) if places is not None else None
    if spec is None or spec.loader is None:  # another executorch: it has to be imported whole
        yield
        return
    warnings = module_from_spec(spec)
    spec.loader.exec_module(warnings)
    stand_in = ModuleType(COMPILER)
    stand_in.__dict__["_warnings"] = warnings
    sys.modules[WARNINGS] = warnings
    package.__dict__["exir"] = stand_in
    try:
        yield
    finally:
        if package.__dict__.get("exir") is stand_in:
            del package.__dict__["exir"]
        if COMPILER not in sys.modules and sys.modules.get(WARNINGS) is warnings:
            del sys.modules[WARNINGS]  # so that the next to import it imports its package
