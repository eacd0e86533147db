"""Unit -> exported program: torch.export with named dims, and its buffers under their own names.

Two things are done to the exported program that torch.export does not do. Parameters and buffers
get the name they have in the model, not in the wrapper, so that the linker can tell that two
methods mean the same buffer. And a state buffer that a method only reads is marked as one it
writes (with itself): otherwise ExecuTorch would freeze its present value into that method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO

import torch
from attrs import frozen
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec, TensorArgument

from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.composites import composites_listed_once
from mmpack.multimethod.compile.dims import dims_of_symbols, in_dims, require_dynamic, torch_dim
from mmpack.multimethod.compile.rehearse import (
    changed_constant,
    changed_input,
    run_once,
)
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.unused import drop_unused
from mmpack.multimethod.compile.users_code import told
from mmpack.multimethod.compile.widen import in_float32, let_go
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.samples import middle_sizes, random_inputs
from mmpack.multimethod.signature import Signature, ValueSpec


@frozen(eq=False)
class Exported:
    """An exported unit: its program (functional ATen), its whole signature, and the model's names
    of the buffers that it changes (`mutated`) and of those that it only reads (`read`).

    Weights that the model keeps in half precision are held so, while the program's graph computes
    in float32: `widen_program` makes it one that can be run or saved."""

    program: ExportedProgram
    signature: Signature
    mutated: frozenset[str]
    read: frozenset[str]


def export(unit: Unit, names: Mapping[int, str]) -> Exported:
    """Export one unit. `names` maps id(tensor) to its name in the model.

    Raises ModelError if the module cannot be run, or changes a parameter or an input; CompileError
    if torch.export refuses it, or if a dim that should be dynamic came out fixed or narrower than
    the spec says. Both name the method's place in the spec.
    """
    sizes = middle_sizes(unit.dims)
    example = random_inputs(unit.inputs, sizes, unit.ranges, torch.Generator().manual_seed(0))
    with kept_buffers(unit.module), torch.no_grad():
        outputs = run_once(unit, sizes).names
        with in_float32(unit.module) as copies:
            program = _exported(unit, tuple(example))
            let_go(program, copies)
    _refuse_changes(unit, program)
    require_dynamic(unit, program)
    values = _outputs(unit, program, outputs)
    signature = Signature(unit.name, unit.inputs, values, dict(unit.dims))
    _rename(unit, program, names)
    drop_unused(program)
    for key in [key for key in program.range_constraints if not key.is_Symbol]:
        # The range of "32*s0", beside that of s0: torch.export.load takes it for a symbol.
        del program.range_constraints[key]
    mutated = frozenset(program.graph_signature.buffers_to_mutate.values())
    return Exported(program, signature, mutated, _buffers_used(program) - mutated)


def _exported(unit: Unit, example: tuple[torch.Tensor, ...]) -> ExportedProgram:
    symbols = {name: torch_dim(dim) for name, dim in unit.dims.items() if not dim.fixed}
    shapes = tuple(
        {
            axis: symbols[size]
            for axis, size in enumerate(value.shape or ())
            if isinstance(size, str) and size in symbols
        }
        for value in unit.inputs
    )
    try:
        # torch.export prints the graph of what it could not export.
        with redirect_stderr(StringIO()):
            program: ExportedProgram = torch.export.export(
                # A type of the user's own, such as a named tuple, cannot be saved for the worker.
                unit.module.flattened(),
                example,
                dynamic_shapes=(shapes,) if shapes else None,
                strict=False,
            )
        _drop_twins(program)
        with composites_listed_once():
            decomposed: ExportedProgram = program.run_decompositions({})
        return decomposed
    except Exception as error:
        # torch calls the dims by the names they have here, a stepped one with "_" before it.
        words = set(re.findall(r"\w+", str(error)))
        blamed = [repr(name) for name in symbols if {name, f"_{name}"} & words]
        dims = f", it seems because of dim {' and '.join(blamed)}" if blamed else ""
        why = _without_advice(told(error, unit.spec_file.folder))
        raise CompileError(unit.mistake(f"torch.export failed{dims}: {why}")) from error


_ADVICE = re.compile(
    r"^ *(For (more|extended|C\+\+)|If you suspect|consider using|Caused by: \(|The error above|"
    r"The following call raised this error:).*$"
)
"""How lines begin in which torch.export tells its own developers what to try."""


def _without_advice(message: str) -> str:
    """torch.export's message without the lines that are of no use to who wrote the model: advice on
    torch's own variables, and the user's line, which is told anyhow."""
    kept: list[str] = []
    excerpt = False
    for line in message.split("\n"):
        if _ADVICE.match(line):
            excerpt = "following call" in line
        elif not (excerpt and re.match(r" {4,}", line)) and line.strip():
            kept.append(line)
    return "\n".join(kept)


def _drop_twins(program: ExportedProgram) -> None:
    """Leave one input for a tensor that a module holds under several names, as a wrapper does
    that keeps both a layer and a part of it. torch cannot decompose a program where a buffer that
    it changes comes in twice."""
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    first: dict[int, torch.fx.Node] = {}
    kept = []
    for spec in program.graph_signature.input_specs:
        tensor = program.state_dict.get(spec.target or "", program.constants.get(spec.target or ""))
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and tensor is not None:
            node = placeholders[spec.arg.name]
            before = first.setdefault(id(tensor), node)
            if before is not node:
                node.replace_all_uses_with(before)
                program.graph.erase_node(node)
                continue
        kept.append(spec)
    program.graph_signature.input_specs[:] = kept
    program.graph_module.recompile()


def _refuse_changes(unit: Unit, program: ExportedProgram) -> None:
    """Only buffers may be changed: nothing else of a module is memory that a program keeps."""
    for spec in program.graph_signature.output_specs:
        if spec.kind == OutputKind.USER_INPUT_MUTATION:
            number = list(program.graph_signature.user_inputs).index(spec.target)
            raise changed_input(unit, unit.inputs[number].name)
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.BUFFER_MUTATION):
            raise changed_constant(unit, str(spec.target))


def _buffers_used(program: ExportedProgram) -> frozenset[str]:
    """Names of the buffers that something is computed from: all of a module's are inputs."""
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    buffers = program.graph_signature.inputs_to_buffers
    return frozenset(name for placeholder, name in buffers.items() if placeholder in used)


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


def _outputs(unit: Unit, program: ExportedProgram, names: tuple[str, ...]) -> tuple[ValueSpec, ...]:
    """What the method returns, shapes in terms of the spec's dims."""
    back = dims_of_symbols(unit, program)
    nodes = {node.name: node for node in program.graph.nodes}
    values = []
    specs = [s for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    for name, spec in zip(names, specs, strict=True):
        tensor = nodes[spec.arg.name].meta["val"]
        shape = tuple(s if isinstance(s, int) else in_dims(s, back) for s in tensor.shape)
        values.append(ValueSpec(name, str(tensor.dtype).removeprefix("torch."), shape))
    return tuple(values)


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
        # Not entry by entry: one tensor's new name may be another one's old name.
        renamed = {new.get(old, old): tensor for old, tensor in table.items()}
        table.clear()
        table.update(renamed)
