"""What the nodes of an exported program say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import Node


def shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def operator(node: Any) -> str:
    """The bare name of a node's operator ("softmax" for aten.softmax.int), "" for other nodes."""
    if node.op != "call_function" or not hasattr(node.target, "_schema"):
        return ""
    return str(node.target.name()).rpartition("::")[2].partition(".")[0]


def operands(node: Any) -> tuple[Any, ...]:
    """The arguments of a node's operator that are given by position."""
    return tuple(node.args)


def arguments(node: Any) -> dict[str, Any]:
    """The arguments of a node's operator by name, those that are not given by their defaults."""
    declared = node.target._schema.arguments
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    given = {a.name: value for a, value in zip(declared, node.args, strict=False)}
    return {**defaults, **given, **node.kwargs}


def constants(program: ExportedProgram) -> dict[Node, Tensor]:
    """The inputs of a program's graph that no call changes, and what they hold."""
    from torch.export.graph_signature import InputKind

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    changed = set(program.graph_signature.buffers_to_mutate.values())
    return {
        nodes[spec.arg.name]: held_by(program, spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        and spec.target not in changed
    }


def held_by(program: ExportedProgram, name: str | None) -> Any:
    """The parameter, buffer or constant of that name."""
    table = program.state_dict if name in program.state_dict else program.constants
    return table[name or ""]
