"""Weights and buffers that a method never touches, left out of its exported program.

A method made from a whole model (`module: "."`) brings all of its tensors along. ExecuTorch drops
the parameters that are not used; an unused buffer, which may be a cache of some hundred megabytes,
it would write into the file as a constant.
"""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def drop_unused(program: ExportedProgram) -> None:
    """Take the tensors that nothing in the graph reads or returns out of a program, in place."""
    graph = program.graph
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    # One that is overwritten whole has no reader, and is state all the same.
    changed = set(program.graph_signature.buffers_to_mutate.values())
    kept = []
    for spec in program.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind not in TENSORS or node.users or spec.target in changed:
            kept.append(spec)
            continue
        graph.erase_node(node)
        assert spec.target is not None
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    program.graph_signature.input_specs[:] = kept
    program.graph_module.recompile()
