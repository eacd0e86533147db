"""Constant methods: they take nothing and return one number, bool or string."""

from __future__ import annotations

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.manifest import Constant
from mmpack.multimethod.link.schema import (
    Bool,
    Chain,
    ContainerMetadata,
    Double,
    EValue,
    ExecutionPlan,
    Int,
    String,
)

_ONE_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
"""ExecuTorch's description of an output that is a single value."""


def constant_plan(name: str, value: Constant) -> ExecutionPlan:
    """The plan that ExecuTorch's `constant_methods` makes of a value. LinkError for other types,
    and for an int of more than 64 bits."""
    held: Bool | Int | Double | String
    if isinstance(value, bool):
        held = Bool(value)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise LinkError(f"constant {name!r}: {value} does not fit into 64 bits")
        held = Int(value)
    elif isinstance(value, float):
        held = Double(value)
    elif isinstance(value, str) and "\0" not in value:
        held = String(value)
    else:
        raise LinkError(f"constant {name!r}: {value!r} is no int, float, bool or str")
    return ExecutionPlan(
        name=name,
        container_meta_type=ContainerMetadata("", _ONE_LEAF),
        values=[EValue(held)],
        inputs=(),
        outputs=(0,),
        chains=[Chain(inputs=(), outputs=(), instructions=[])],
        operators=[],
        delegates=[],
        non_const_buffer_sizes=(0,),
    )


def is_constant(plan: ExecutionPlan) -> bool:
    """Whether a plan is a constant method."""
    return constant_of(plan) is not None


def constant_of(plan: ExecutionPlan) -> Constant | None:
    """The value that a constant method returns; None if the plan is none."""
    busy = any(chain.instructions for chain in plan.chains or ())
    if plan.inputs or len(plan.outputs or ()) != 1 or busy:
        return None
    value = (plan.values or [])[(plan.outputs or ())[0]].val
    if isinstance(value, Int):
        return value.int_val
    if isinstance(value, Bool):
        return value.bool_val
    if isinstance(value, Double):
        return value.double_val
    return value.string_val if isinstance(value, String) else None
