"""The backends, found by looking into this folder, so a new one is one new file with a subclass of
`Backend`. Helpers of a backend stand beside it and begin with its name (`qnn_sdk`); they are
imported like the rest, and add nothing."""

from __future__ import annotations

import importlib
import pkgutil

from mmpack.multimethod.targets.base import Availability, Backend, Refusal

__all__ = ["BACKENDS", "Availability", "Backend", "Refusal"]


def _found() -> dict[str, type[Backend]]:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {
        thing.name: thing
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Backend) and thing is not Backend
    }


BACKENDS: dict[str, type[Backend]] = _found()
"""Backend name -> class."""
