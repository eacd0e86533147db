"""What a caller gives to a flow, held against what it takes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmpack.multimethod.errors import FlowError, counted, nearest
from mmpack.multimethod.flow.plan import Plan


def bound(plan: Plan, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs by name. Raises FlowError for one that is unknown, missing or given twice."""
    names = list(plan.cuts)
    if len(args) > len(names):
        raise wrong(plan, f"takes {counted(len(names), 'input')}, got {len(args)}")
    given = dict(zip(names, args, strict=False))
    for name in given.keys() & kwargs.keys():
        raise wrong(plan, f"input {name!r} was given twice")
    given |= kwargs
    for name in given.keys() - set(names):
        raise wrong(plan, f"has no input {name!r}{nearest(name, names)}")
    missing = [name for name in names if name not in given]
    if missing:
        raise wrong(plan, f"needs {', '.join(map(repr, missing))}")
    return given


def length_of(plan: Plan, inputs: Mapping[str, Tensor]) -> int:
    """How many rows the inputs have along the axis that they are cut along. Raises FlowError for
    other dtypes and shapes than the flow takes, for different lengths, and for none."""
    lengths = {}
    for name, cut in plan.cuts.items():
        tensor, wanted = inputs[name], list(cut.value.shape or ())
        if not isinstance(tensor, Tensor):
            raise wrong(plan, f"input {name!r} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != len(wanted):
            raise wrong(
                plan, f"input {name!r} must have {len(wanted)} axes, got {list(tensor.shape)}"
            )
        wanted[cut.axis] = tensor.shape[cut.axis]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if list(tensor.shape) != wanted or dtype != cut.value.dtype:
            wanted[cut.axis] = "any length"
            raise wrong(
                plan,
                f"input {name!r} must be {cut.value.dtype}[{', '.join(map(str, wanted))}], "
                f"got {dtype}{list(tensor.shape)}",
            )
        lengths[name] = tensor.shape[cut.axis]
    if len(set(lengths.values())) != 1:
        raise wrong(plan, f"its inputs must be equally long, got {lengths}")
    (length,) = set(lengths.values())
    if length == 0:
        raise wrong(plan, "its input is empty")
    return length


def wrong(plan: Plan, message: str) -> FlowError:
    return FlowError(f"flow {plan.name!r}: {message}")
