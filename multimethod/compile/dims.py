"""The spec's dims in torch.export and back: symbols made of them, and what became of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from mmpack.multimethod.compile.guards import broken_guard
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.signature import Dim


def torch_dim(dim: Dim) -> Any:
    if dim.step == 1:
        return TorchDim(dim.name, min=dim.min, max=dim.max)
    base = TorchDim(f"_{dim.name}", min=dim.min // dim.step, max=dim.max // dim.step)
    return dim.step * base


def require_dynamic(unit: Unit, program: ExportedProgram) -> None:
    """Every dim that the spec calls dynamic must still be so, over its whole range."""
    symbols: dict[Any, tuple[str, int]] = {}
    shape_env: Any = None
    for value, shape in zip(unit.inputs, _user_input_shapes(program), strict=True):
        for axis, name in enumerate(value.shape or ()):
            if not isinstance(name, str) or unit.dims[name].fixed:
                continue
            dim, size = unit.dims[name], shape[axis]
            if isinstance(size, int):
                raise CompileError(
                    unit.mistake(
                        f"dim {name!r} of input {value.name!r} became the fixed size {size} in "
                        "torch.export; the module computes with its number",
                        "inputs",
                    )
                )
            shape_env = size.node.shape_env
            (symbol,) = size.node.expr.free_symbols
            symbols[symbol] = (name, dim.step)
            bounds = shape_env.bound_sympy(size.node.expr)
            low, high = int(bounds.lower), int(bounds.upper)
            # torch.export reasons about sizes of two and more, and its programs work for one too;
            # verification runs the minimum itself.
            if low > max(dim.min, 2 * dim.step) or high < dim.max:
                raise CompileError(
                    unit.mistake(
                        f"the module admits {name!r} only from {low} to {high}, the spec says "
                        f"{dim.min} to {dim.max}",
                        "inputs",
                    )
                )
    broken = broken_guard(shape_env, symbols, unit.dims) if symbols else None
    if broken is not None:
        condition, sizes = broken
        shown = " and ".join(f"{name}={size}" for name, size in sizes.items())
        raise CompileError(
            unit.mistake(
                "the module computes differently depending on a size, and was exported for "
                f"{condition}, which {shown} does not fulfil",
                "inputs",
            )
        )


def dims_of_symbols(unit: Unit, program: ExportedProgram) -> dict[Any, Any]:
    """torch's symbol -> expression in the spec's dims (a stepped dim is a multiple of one)."""
    back: dict[Any, Any] = {}
    for value, shape in zip(unit.inputs, _user_input_shapes(program), strict=True):
        for name, size in zip(value.shape or (), shape, strict=True):
            if isinstance(name, str) and not isinstance(size, int):
                (symbol,) = size.node.expr.free_symbols
                dim = sympy.Symbol(name, integer=True, positive=True)
                back[symbol] = dim / (size.node.expr / symbol)
    return back


def in_dims(size: Any, back: Mapping[Any, Any]) -> int | str:
    expression = sympy.simplify(size.node.expr.subs(back))
    return int(expression) if expression.is_Integer else str(expression)


def _user_input_shapes(program: ExportedProgram) -> list[tuple[Any, ...]]:
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    return [
        tuple(placeholders[spec.arg.name].meta["val"].shape)
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    ]
