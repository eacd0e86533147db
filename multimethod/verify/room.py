"""Is there memory to run a unit, and to compare it with its program? See `memory.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.memory import bytes_of, too_much
from mmpack.multimethod.signature import ValueSpec
from mmpack.multimethod.verify.compare import combinations


def require_room(unit: Unit, tried: Sequence[Mapping[str, int]]) -> None:
    """Raise ModelError if a unit's inputs cannot be held at the largest of some sizes."""
    if told := _too_much(unit.inputs, tried, 1):
        raise unit.error(f"its inputs take {told}", "inputs")


def require_verifiable(unit: Unit, outputs: Iterable[ValueSpec]) -> None:
    """Raise ModelError if a unit cannot be compared with eager PyTorch at all sizes that a
    verification tries, naming the dim that is to blame. Inputs and outputs are held twice, for
    eager PyTorch and for the program."""
    told = _too_much((*unit.inputs, *outputs), combinations(unit.dims), 2)
    if told is None:
        return
    moving = [dim for dim in unit.dims.values() if not dim.fixed]
    if not moving:
        message = "to compare it with eager PyTorch, inputs and outputs take "
        raise unit.error(f"{message}{told}; build with --no-verify", "inputs")
    widest = max(moving, key=lambda dim: dim.max / dim.min)
    message = (
        f"method {unit.name!r} is compared with eager PyTorch at the maximum too, where inputs and "
        f"outputs take {told}; give a smaller maximum, or build with --no-verify"
    )
    raise ModelError(str(unit.spec_file.mistake(("dims", widest.name, "max"), message)))


def _too_much(
    values: Iterable[ValueSpec], tried: Sequence[Mapping[str, int]], copies: int
) -> str | None:
    """What the values of a call take at the largest of some sizes, if that is too much."""
    values = tuple(values)
    sizes = max(tried, key=lambda sizes: bytes_of(values, sizes))
    told = too_much(copies * bytes_of(values, sizes))
    at = ", ".join(f"{name}={size}" for name, size in sizes.items())
    return told and f"{told} (at {at})" if at else told
