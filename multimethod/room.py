"""Is there memory for it? Asked before tensors are made, since a machine that runs out of it kills
more than the build.

Only what is certain is counted: the inputs and outputs of one call, each twice, for eager PyTorch
and for the program. A module needs more than that, so no more than half of what is available may
go to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmpack.multimethod.compare import combinations
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.signature import DTYPES, ValueSpec


def require_room(unit: Unit, tried: Sequence[Mapping[str, int]]) -> None:
    """Raise ModelError if a unit's inputs cannot be held at the largest of some sizes."""
    if told := _too_much(unit.inputs, tried):
        raise unit.error(f"its inputs take {told}", "inputs")


def require_verifiable(unit: Unit, outputs: Iterable[ValueSpec]) -> None:
    """Raise ModelError if a unit cannot be compared with eager PyTorch at all sizes that a
    verification tries, naming the dim that is to blame."""
    told = _too_much((*unit.inputs, *outputs), combinations(unit.dims))
    if told is None:
        return
    moving = [dim for dim in unit.dims.values() if not dim.fixed]
    if not moving:
        raise unit.error(f"its inputs and outputs take {told}; build with --no-verify", "inputs")
    widest = max(moving, key=lambda dim: dim.max / dim.min)
    message = (
        f"method {unit.name!r} is compared with eager PyTorch at the maximum too, where its inputs "
        f"and outputs take {told}; give a smaller maximum, or build with --no-verify"
    )
    raise ModelError(str(unit.spec_file.mistake(("dims", widest.name, "max"), message)))


def call_bytes(values: Iterable[ValueSpec], sizes: Mapping[str, int]) -> int:
    """Bytes that a comparison holds of these inputs and outputs, their dims set to `sizes`. A size
    that is not known counts as one."""
    total = 0
    for value in values:
        shape = (sizes.get(s, 1) if isinstance(s, str) else s for s in value.shape or ())
        total += math.prod(shape) * DTYPES.get(value.dtype, 8)
    return 2 * total


def available_memory() -> int | None:
    """Bytes that this process can still be given; None where that cannot be told."""
    return min((n for n in (_of_machine(), _of_group()) if n is not None), default=None)


def _too_much(values: Iterable[ValueSpec], tried: Sequence[Mapping[str, int]]) -> str | None:
    """What the values of a call take, and at which sizes, if that is too much."""
    values = tuple(values)
    sizes = max(tried, key=lambda sizes: call_bytes(values, sizes))
    needed, available = call_bytes(values, sizes), available_memory()
    if available is None or needed <= available // 2:
        return None
    at = ", ".join(f"{name}={size}" for name, size in sizes.items())
    return f"{_gigabytes(needed)}{f' at {at}' if at else ''}, and {_gigabytes(available)} are free"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_group() -> int | None:
    """A container's limit (cgroup 2). What of it is used is not subtracted: most of that is the
    cache of files, which gives way."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
