"""Unit -> exported program: torch.export with named dims, and its buffers under their own names.

Two things are done to the exported program that torch.export does not do. Parameters and buffers
get the name they have in the model, not in the wrapper, so that the linker can tell that two
methods mean the same buffer. And a state buffer that a method only reads is marked as one it
writes (with itself): otherwise ExecuTorch would freeze its present value into that method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from attrs import frozen
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.samples import middle_sizes, random_inputs
from mmpack.multimethod.signature import Dim, Signature, ValueSpec


@frozen(eq=False)
class Exported:
    """An exported unit: its program (functional ATen), its whole signature, and the model's names
    of the buffers that it changes (`mutated`) and of those that it only reads (`read`)."""

    program: ExportedProgram
    signature: Signature
    mutated: frozenset[str]
    read: frozenset[str]


def export(unit: Unit, names: Mapping[int, str]) -> Exported:
    """Export one unit. `names` maps id(tensor) to its name in the model.

    Raises CompileError, naming the method, if torch.export refuses it or if a dim that should be
    dynamic came out fixed or narrower than the spec says.
    """
    sizes = middle_sizes(unit.dims)
    example = random_inputs(unit.inputs, sizes, unit.ranges, torch.Generator().manual_seed(0))
    symbols = {name: _torch_dim(dim) for name, dim in unit.dims.items() if not dim.fixed}
    shapes = tuple(
        {
            axis: symbols[size]
            for axis, size in enumerate(value.shape or ())
            if isinstance(size, str) and size in symbols
        }
        for value in unit.inputs
    )
    buffers = {name: b.detach().clone() for name, b in unit.module.named_buffers()}
    try:
        with torch.no_grad():
            result = unit.module(*example)
            program = torch.export.export(
                unit.module, tuple(example), dynamic_shapes=(shapes,), strict=False
            ).run_decompositions({})
    except Exception as error:
        raise CompileError(
            f"{unit.name}: torch.export failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        for name, buffer in unit.module.named_buffers():
            buffer.copy_(buffers[name])
    _require_dynamic(unit, program)
    signature = Signature(unit.name, unit.inputs, _outputs(unit, program, result), dict(unit.dims))
    _rename(unit, program, names)
    for key in [key for key in program.range_constraints if not key.is_Symbol]:
        # The range of "32*s0", beside that of s0: torch.export.load takes it for a symbol.
        del program.range_constraints[key]
    mutated = frozenset(program.graph_signature.buffers_to_mutate.values())
    read = frozenset(program.graph_signature.inputs_to_buffers.values()) - mutated
    return Exported(program, signature, mutated, read)


def mark_as_state(program: ExportedProgram, buffers: frozenset[str]) -> None:
    """Declare buffers that a program only reads to be ones that it writes unchanged.

    ExecuTorch then plans them as mutable memory, where another method's writes are seen; the
    write itself is dropped again by its own passes, so it costs nothing at run time.
    """
    graph = program.graph
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    output = graph.output_node()
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.BUFFER and spec.target in buffers:
            assert isinstance(spec.arg, TensorArgument)
            output.args = ((placeholders[spec.arg.name], *output.args[0]),)  # type: ignore[misc]
            program.graph_signature.output_specs.insert(
                0,
                OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(spec.arg.name), spec.target),
            )
    program.graph_module.recompile()


def _torch_dim(dim: Dim) -> Any:
    if dim.step == 1:
        return TorchDim(dim.name, min=dim.min, max=dim.max)
    base = TorchDim(f"_{dim.name}", min=dim.min // dim.step, max=dim.max // dim.step)
    return dim.step * base


def _require_dynamic(unit: Unit, program: ExportedProgram) -> None:
    """Every dim that the spec calls dynamic must still be so, over its whole range."""
    for value, shape in zip(unit.inputs, _user_input_shapes(program), strict=True):
        for axis, name in enumerate(value.shape or ()):
            if not isinstance(name, str) or unit.dims[name].fixed:
                continue
            dim, size = unit.dims[name], shape[axis]
            if isinstance(size, int):
                raise CompileError(
                    f"{unit.name}: dim {name!r} of input {value.name!r} became the fixed size "
                    f"{size} in torch.export; the module computes with its number"
                )
            bounds = size.node.shape_env.bound_sympy(size.node.expr)
            low, high = int(bounds.lower), int(bounds.upper)
            # torch.export reasons about sizes of two and more, and its programs work for one too;
            # verification runs the minimum itself.
            if low > max(dim.min, 2 * dim.step) or high < dim.max:
                raise CompileError(
                    f"{unit.name}: the module admits {name!r} only from {low} to {high}, the spec "
                    f"says {dim.min} to {dim.max}"
                )


def _user_input_shapes(program: ExportedProgram) -> list[tuple[Any, ...]]:
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    return [
        tuple(placeholders[spec.arg.name].meta["val"].shape)
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    ]


def _outputs(unit: Unit, program: ExportedProgram, result: Any) -> tuple[ValueSpec, ...]:
    """Names and shapes of what the method returns, shapes in terms of the spec's dims."""
    leaves = pytree.tree_leaves(result)
    if any(not isinstance(leaf, torch.Tensor) for leaf in leaves):
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves)
        raise CompileError(f"{unit.name}: returns ({kinds}); only tensors can be outputs")
    names = unit.spec.outputs or _names_of(result, len(leaves))
    if len(names) != len(leaves):
        raise CompileError(
            f"{unit.name}: the spec names {len(names)} outputs ({', '.join(names)}), the module "
            f"returns {len(leaves)}"
        )
    back = _dims_of_symbols(unit, program)
    nodes = {node.name: node for node in program.graph.nodes}
    values = []
    specs = [s for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    for name, spec in zip(names, specs, strict=True):
        tensor = nodes[spec.arg.name].meta["val"]
        shape = tuple(s if isinstance(s, int) else _in_dims(s, back) for s in tensor.shape)
        values.append(ValueSpec(name, str(tensor.dtype).removeprefix("torch."), shape))
    return tuple(values)


def _names_of(result: Any, count: int) -> tuple[str, ...]:
    if isinstance(result, Mapping) and len(result) == count:
        return tuple(map(str, result))
    fields = getattr(result, "_fields", ())
    if len(fields) == count:
        return tuple(fields)
    return ("out",) if count == 1 else tuple(f"out_{i}" for i in range(count))


def _dims_of_symbols(unit: Unit, program: ExportedProgram) -> dict[Any, Any]:
    """torch's symbol -> expression in the spec's dims (a stepped dim is a multiple of one)."""
    back: dict[Any, Any] = {}
    for value, shape in zip(unit.inputs, _user_input_shapes(program), strict=True):
        for name, size in zip(value.shape or (), shape, strict=True):
            if isinstance(name, str) and not isinstance(size, int):
                (symbol,) = size.node.expr.free_symbols
                dim = sympy.Symbol(name, integer=True, positive=True)
                back[symbol] = dim / (size.node.expr / symbol)
    return back


def _in_dims(size: Any, back: Mapping[Any, Any]) -> int | str:
    expression = sympy.simplify(size.node.expr.subs(back))
    return int(expression) if expression.is_Integer else str(expression)


def _rename(unit: Unit, program: ExportedProgram, names: Mapping[int, str]) -> None:
    """Give every parameter and buffer the name it has in the model. What only the wrapper has is
    named after the method, so that it cannot meet another method's."""
    tensors = {
        **dict(unit.module.named_parameters(remove_duplicate=False)),
        **dict(unit.module.named_buffers(remove_duplicate=False)),
    }
    new = {
        old: names.get(id(tensor), f"{unit.name}:{old.removeprefix('module.')}")
        for old, tensor in tensors.items()
    }
    signature = program.graph_signature
    for spec in [*signature.input_specs, *signature.output_specs]:
        if spec.target in new:
            spec.target = new[spec.target]
    for table in (program.state_dict, program.constants):
        for old in [key for key in table if key in new]:
            table[new[old]] = table.pop(old)
