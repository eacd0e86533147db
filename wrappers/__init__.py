"""Submodules of a decoder as standalone modules with a `forward` of their own.

One wrapper a file: `qkv_proj.py` holds `QkvProj`, which a spec names as `wrapper: qkv_proj`; files
that begin with `_` hold what several use. They read submodules by the names that Hugging Face gives
them in Llama.
"""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from mmpack.multimethod.errors import ModelError, nearest


def names() -> tuple[str, ...]:
    """Names of all wrappers."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def find(name: str) -> type[nn.Module]:
    """The wrapper class of a name. Raises ModelError if there is none."""
    if name not in names():
        raise ModelError(f"no wrapper is called {name!r}{nearest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = getattr(module, "".join(part.capitalize() for part in name.split("_")))
    assert isinstance(found, type) and issubclass(found, nn.Module)
    return found
