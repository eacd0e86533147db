"""Parts of the values of an exported program, computed apart: "head 3 of this product" as nodes of
their own, down to the rows of a projection's weight.

A part is asked for as a node and a box of its value. The rule of the node's operator
(`qnn_part_rules.py`) makes it of parts of the operands; where there is none for the operator, or
not for that box, the whole value is computed and the part cut out of it, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.targets.qnn_boxes import Box, whole
from mmpack.multimethod.targets.qnn_nodes import constants, operator, shape
from mmpack.multimethod.targets.qnn_part_rules import derive

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


class Parts:
    """The parts made so far in a program, to whose graph they are added."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._graph = program.graph
        self._constants = constants(program)
        self._derived: dict[Node, dict[Box, Node | None]] = {}
        self._cut: dict[Node, dict[Box, Node]] = {}
        self._known: dict[tuple[Node, str, str], Node] = {}
        self._next = {node: node.next for node in self._graph.nodes}

    def of(self, node: Node, box: Box) -> Node:
        """A node whose value is that box of the node's value."""
        if box == whole(shape(node)):
            return node
        part = self.derived(node, box)
        return part if part is not None else self._cut_out(node, box)

    def derived(self, node: Node, box: Box) -> Node | None:
        """The same, but None if it would have to be cut out of the whole value."""
        made = self._derived.setdefault(node, {})
        if box not in made:
            constant = node in self._constants
            made[box] = self._constant(node, box) if constant else derive(self, node, box)
        return made[box]

    def boxes(self, node: Node) -> list[Box]:
        """The boxes of which parts of a node were derived."""
        return [box for box, part in self._derived.get(node, {}).items() if part is not None]

    def is_cut(self, node: Node) -> bool:
        """Whether parts were cut out of the node's value."""
        return node in self._cut

    def emit(self, node: Node, target: Any, *args: Any) -> Node:
        """A new node that belongs to a part of `node`: it may use any part of the operands, and
        stands before all that uses `node`. What several heads have in common is made once."""

        def make() -> Any:
            return self._graph.call_function(target, args)

        return self._made(node, (str(target), repr(args)), make)

    def copy(self, node: Node, operands: Mapping[Node, Node]) -> Node:
        """The node's operator on other operands."""

        def make() -> Any:
            return self._graph.node_copy(node, lambda operand: operands.get(operand, operand))

        return self._made(node, ("copy", repr(operands)), make)

    def _made(self, node: Node, what: tuple[str, str], make: Callable[[], Any]) -> Node:
        key = (node, *what)
        if key not in self._known:
            with self._graph.inserting_before(self._next[node]):
                made = self._known[key] = make()
            made.meta = {name: value for name, value in node.meta.items() if name != "val"}
        return self._known[key]

    def quantized_like(self, node: Node, made: Node) -> Node:
        """What was `made` for a node, quantized like that: as what follows every operator of a
        quantized program."""
        if not operator(node).startswith("dequantize"):
            return made
        quantize: Any = node.args[0]
        made = self.emit(node, quantize.target, made, *quantize.args[1:])
        return self.emit(node, node.target, made, *node.args[1:])

    def _cut_out(self, node: Node, box: Box) -> Node:
        import torch

        cut = self._cut.setdefault(node, {})
        if box not in cut:
            made = node
            for axis, (at, size) in enumerate(zip(box, shape(node), strict=True)):
                if at != (0, size):
                    made = self.emit(node, torch.ops.aten.slice.Tensor, made, axis, *at)
                    made = self.quantized_like(node, made)
            cut[box] = made
        return cut[box]

    def _constant(self, node: Node, box: Box) -> Node:
        """A part of a constant, as a constant of its own: a buffer, since ExecuTorch's QNN passes
        write to no other constants."""
        import torch
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

        signature = self._program.graph_signature
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        after = next(n for n in self._graph.nodes if n.name not in held)
        part = self._constants[node].detach()[tuple(slice(*at) for at in box)]
        target = f"{node.name}_part_{len(self._derived[node])}"
        with self._graph.inserting_before(after):
            # As torch.export calls the buffer.
            made: Node = self._graph.placeholder(f"b_{target}")  # type: ignore[assignment]
        made.meta["val"] = node.meta["val"].fake_mode.from_tensor(part, static_shapes=True)
        self._program.state_dict[target] = part.clone(memory_format=torch.contiguous_format)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(made.name), target, persistent=True)
        signature.input_specs.insert(len(held), spec)
        return made
