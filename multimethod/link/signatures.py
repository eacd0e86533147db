"""Signatures of methods that mmpack did not build, read off their plans.

A plan tells dtypes and upper bounds, no names and no relation between dims. Values are called
`in_0`, `out_0`, …. Where a tensor may change its sizes, each size above 1 becomes a dim of its
own, `in_0_1` for axis 1 of `in_0`, from 1 to what the plan says.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmpack.multimethod.errors import FormatError, nearest
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.schema import (
    Bool,
    Double,
    Dynamism,
    ExecutionPlan,
    Int,
    Null,
    ScalarType,
    String,
    Tensor,
)
from mmpack.multimethod.signature import Dim, Signature, ValueSpec

_SCALARS: dict[type, str] = {Int: "int", Double: "float", Bool: "bool", String: "str", Null: "none"}


def foreign_signature(file: PteFile, method: str) -> Signature:
    """What the plan of a method says that it takes and gives: names `in_0`, …, upper bounds.

    Raises FormatError, with the nearest names, if the program has no such method.
    """
    plans = {plan.name or "": plan for plan in file.plans}
    if method not in plans:
        raise FormatError(f"{file.path}: no method {method!r}{nearest(method, plans)}")
    plan = plans[method]
    dims: dict[str, Dim] = {}
    return Signature(
        method,
        _values(plan, "in", plan.inputs or (), dims),
        _values(plan, "out", plan.outputs or (), dims),
        dims,
    )


def _values(
    plan: ExecutionPlan, prefix: str, indices: Iterable[int], dims: dict[str, Dim]
) -> tuple[ValueSpec, ...]:
    made = []
    for number, index in enumerate(indices):
        name, value = f"{prefix}_{number}", (plan.values or [])[index].val
        if not isinstance(value, Tensor):
            made.append(ValueSpec(name, _SCALARS.get(type(value), type(value).__name__), None))
            continue
        shape: list[int | str] = []
        for axis, size in enumerate(value.sizes or ()):
            if value.shape_dynamism == Dynamism.STATIC or size <= 1:
                shape.append(size)
            else:
                dim = f"{name}_{axis}"
                dims[dim] = Dim(dim, 1, size)
                shape.append(dim)
        made.append(ValueSpec(name, ScalarType(value.scalar_type).name, tuple(shape)))
    return tuple(made)
