"""The cache, shown: what it holds, what a pruning left of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mmpack.multimethod.compile.stored import Pruned, Stored
from mmpack.multimethod.errors import counted
from mmpack.multimethod.report.tables import Fitted, size


def stored_table(found: Sequence[Stored]) -> Fitted:
    """One row a compiled method; the same method may be there in several versions."""
    methods = [entry for entry in found if entry.method is not None]
    return Fitted(
        {
            "method": [entry.method or "" for entry in methods],
            "backend": [entry.backend or "" for entry in methods],
            "size": [size(entry.size) for entry in methods],
            "last used": [_when(entry.used) for entry in methods],
        },
        right=["size"],
    )


def stored_summary(found: Sequence[Stored]) -> str:
    return f"{_counted(found)}, {size(_total(found))}"


def pruned_summary(pruned: Pruned) -> str:
    return (
        f"removed {_counted(pruned.removed)}, {size(_total(pruned.removed))}; "
        f"kept {_counted(pruned.kept)}, {size(_total(pruned.kept))}"
    )


def _counted(found: Sequence[Stored]) -> str:
    return counted(sum(entry.method is not None for entry in found), "compiled method")


def _total(found: Sequence[Stored]) -> int:
    return sum(entry.size for entry in found)


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
