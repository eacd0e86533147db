"""What a flow is held against: the Python method of the model that its `reference` names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.parameters import wrong_names
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.errors import FlowError, nearest
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.samples import random_tensor
from mmpack.multimethod.signature import Signature, ValueSpec
from mmpack.multimethod.spec import SpecFile

NOTHING = "none"
"""The `reference` of a flow that is not compared."""

OTHERWISE = " (`reference: none` leaves the flow unchecked)"


def flow_inputs(
    spec_file: SpecFile, plan: Plan, units: Mapping[str, Unit], seed: int = 1
) -> dict[str, torch.Tensor]:
    """Test values for a flow's inputs: two and a half pieces, or as much as there is room for."""
    ranges = _ranges(spec_file, plan.name, units)
    length = flow_length(plan)
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, cut in plan.cuts.items():
        shape = [length if a == cut.axis else int(s) for a, s in enumerate(cut.value.shape or ())]
        inputs[name] = random_tensor(cut.value.dtype, tuple(shape), ranges.get(name), generator)
    return inputs


def flow_length(plan: Plan) -> int:
    """Rows that a flow is tried with."""
    length = max(2 * plan.size + plan.size // 2, 3)
    room = [cache.dim.max for cache in plan.caches.values()]
    return min([length, *room, *([] if plan.limit is None else [plan.limit])])


def run_reference(
    spec_file: SpecFile, plan: Plan, model: nn.Module, inputs: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """What the model's own method gives for a flow's inputs.

    Raises FlowError, at the flow's place in the spec, if the model has no such method, if it takes
    other inputs, if it fails, or gives another number of outputs.
    """
    where = ("flow", plan.name, "reference")
    function = getattr(model, plan.reference, None)
    if not callable(function):
        own = [n for n in dir(type(model)) if not n.startswith("_") and n not in dir(nn.Module)]
        hint = nearest(plan.reference, [*own, "forward"])
        message = f"the model has no method {plan.reference!r} to compare the flow with{hint}"
        raise _error(spec_file, plan, message + OTHERWISE)
    title = f"the model's {plan.reference}"
    _, wrong = wrong_names(title, inspect.signature(function), list(inputs))
    if wrong is not None:
        message = f"the flow is compared with {title}, but {wrong}{OTHERWISE}"
        raise _error(spec_file, plan, message.replace("the spec", "the flow"))
    shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    doing = f"running {title}, which the flow is compared with, on {shown}"
    with torch.no_grad(), kept_buffers(model), users_code(spec_file, where, doing, FlowError):
        expected = [leaf.clone() for leaf in pytree.tree_leaves(function(**inputs))]
    if len(expected) != len(plan.joins):
        raise _error(
            spec_file,
            plan,
            f"the flow's outputs are {', '.join(plan.joins)}; {title} gives {len(expected)}, not "
            f"{len(plan.joins)}{OTHERWISE}",
        )
    return expected


def require_comparable(
    spec_file: SpecFile,
    plan: Plan,
    signatures: Mapping[str, Signature],
    expected: list[torch.Tensor],
) -> None:
    """Raise FlowError if a flow's outputs cannot be what its reference gave, by shape or dtype."""
    length = flow_length(plan)
    for (name, axis), tensor in zip(plan.joins.items(), expected, strict=True):
        value = _given(plan, name, signatures)
        shape = [length if a == axis else size for a, size in enumerate(value.shape or ())]
        dtype = str(tensor.dtype).removeprefix("torch.")
        known = all(isinstance(size, int) for size in shape)
        if value.dtype != dtype or (known and shape != list(tensor.shape)):
            raise _error(
                spec_file,
                plan,
                f"for {length} rows the flow gives {name} {value.dtype}{shape}, the model's "
                f"{plan.reference} {dtype}{list(tensor.shape)}{OTHERWISE}",
            )


def _given(plan: Plan, name: str, signatures: Mapping[str, Signature]) -> ValueSpec:
    """The value that a flow's output is, as its last giver says."""
    for step in reversed(plan.steps):
        for output, target in step.outputs:
            if target == name:
                return next(v for v in signatures[step.method].outputs if v.name == output)
    raise AssertionError(name)


def _ranges(
    spec_file: SpecFile, flow: str, units: Mapping[str, Unit]
) -> dict[str, tuple[int, int]]:
    """Range of integer test values for each cut input: that of the method input it goes to."""
    cut = spec_file.spec.flow[flow].cut
    ranges: dict[str, tuple[int, int]] = {}
    for step in spec_file.steps[flow]:
        unit = units[step.run or ""]
        for name, values in unit.ranges.items():
            source = step.with_.get(name, name)
            if source in cut:
                ranges.setdefault(source, values)
    return ranges


def _error(spec_file: SpecFile, plan: Plan, message: str) -> FlowError:
    keys = ("flow", plan.name, "reference")
    said = keys in spec_file.source.places.values
    return FlowError(str(spec_file.mistake(keys, message, at_key=not said)))
