"""Packages that only some commands need, and that come with an extra."""

from __future__ import annotations

import importlib
from typing import Any

from mmpack.multimethod.huggingface.folder import EXTRA


def need(package: str, why: str) -> Any:
    """The package, imported. Raises ImportError that says what installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{why} needs {package}: {EXTRA}") from error
