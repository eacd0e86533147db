"""Attention of several heads rewritten to single heads, in the exported and quantized program.

The way for what ExecuTorch's own pass (`qnn_heads.py`) cannot convert, and what it is held against
in the tests. Each head of a block's products is made a part of its own (`qnn_parts.py`), which
takes everything from the projections to the end of the attention apart; then what still is wanted
whole is joined of its parts, and the rest of the multi-head program falls away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.targets.qnn_attention import LINEAR, PRODUCT, find_blocks
from mmpack.multimethod.targets.qnn_boxes import Box, Range, tiling, whole
from mmpack.multimethod.targets.qnn_moves import DEQUANTIZE, MOVES, QUANTIZE, source
from mmpack.multimethod.targets.qnn_nodes import constants, operator, shape
from mmpack.multimethod.targets.qnn_parts import Parts

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def rewrite(program: ExportedProgram, method: str) -> int:
    """Rewrite all attention of several heads in a program, in place, and tell how many blocks.

    Raises CompileError if one of them still holds several heads.
    """
    _decompose(program)
    blocks = find_blocks(program)
    unused = {node for node in constants(program) if not node.users}
    parts = Parts(program)
    original = list(program.graph.nodes)
    for block in blocks:
        for product in (block.scores, block.mixed):
            for box in _heads(product):
                parts.of(product, box)
        for node, boxes in _ends(block.mixed, _heads(block.mixed), block.mixed):
            for box in boxes:
                parts.of(node, box)
    _join(program, parts, original)
    _clean(program, unused)
    left = set(program.graph.nodes)
    whole_ones = [b for b in blocks if left & {b.softmax, b.scores, b.mixed}]
    if whole_ones:
        names = ", ".join(f"{block.name} ({block.heads} heads)" for block in whole_ones)
        raise CompileError(
            f"{method}: of {len(blocks)} attention blocks {len(whole_ones)} could not be rewritten "
            f"to single heads: {names}"
        )
    return len(blocks)


def _decompose(program: ExportedProgram) -> None:
    """PyTorch's operator for attention as products and a softmax."""
    from executorch.backends.transforms.decompose_sdpa import DecomposeScaledDotProductAttention

    DecomposeScaledDotProductAttention()(program.graph_module)
    _infer(program)


def _heads(product: Node) -> list[Box]:
    """The boxes of the single heads of a product: [batch, heads, …, rows, columns], or
    [heads, rows, columns]."""
    boxes: list[Box] = [()]
    rank = len(shape(product))
    for axis, size in enumerate(shape(product)):
        batch = axis == 0 and rank > 3
        ranges = [(0, size)] if batch or axis >= rank - 2 else [(i, i + 1) for i in range(size)]
        boxes = [(*box, at) for box in boxes for at in ranges]
    return boxes


def _ends(node: Node, boxes: list[Box], product: Node) -> Iterator[tuple[Node, list[Box]]]:
    """Where the heads of a product, moved on by `MOVES`, are used for something else, and the boxes
    they have there: so they are joined late, where their rows have become channels."""
    for user in node.users:
        if operator(user) not in MOVES:
            yield node, boxes
        elif (there := _moved(user, boxes, product)) is not None:
            yield from _ends(user, there, product)
        else:
            yield node, boxes


def _moved(node: Node, boxes: list[Box], product: Node) -> list[Box] | None:
    """The heads' boxes after an operator of `MOVES`: what comes from each."""
    if shape(node) == shape(node.args[0]) and operator(node) in (QUANTIZE, DEQUANTIZE, "clone"):
        return boxes
    heads = set(_heads(product))
    for axis, size in reversed(list(enumerate(shape(node)))):
        if size % len(heads):
            continue
        step = size // len(heads)
        every = whole(shape(node))
        found = [(*every[:axis], (i, i + step), *every[axis + 1 :]) for i in range(0, size, step)]
        if {_origin(node, box, product) for box in found} == heads:
            return found
    return None


def _origin(node: Any, box: Box | None, product: Node) -> Box | None:
    while node is not product and box is not None:
        node, box = node.args[0], source(node, box)
    return box


def _join(program: ExportedProgram, parts: Parts, original: list[Node]) -> None:
    """Whatever the program still computes whole, and was made in parts: join it of these."""
    output = program.graph.output_node()
    needed: set[Node] = set()
    known = set(original)

    def need(node: Node) -> None:
        waiting = [node]
        while waiting:
            each = waiting.pop()
            if each not in needed:
                needed.add(each)
                waiting += each.all_input_nodes if each not in known else ()

    computed = _computed(program, original)
    need(output)
    for node in reversed(original):
        if node not in needed:
            continue
        quantized = node.args[0] if operator(node) == DEQUANTIZE else node
        boxes = parts.boxes(quantized) if node in computed else []  # type: ignore[arg-type]
        axes = tiling(boxes, shape(node)) if boxes else None
        if axes is None or parts.is_cut(node) or _is_quantized(node):
            for operand in node.all_input_nodes:
                need(operand)
        else:
            joined = _joined(parts, node, axes, ())
            node.replace_all_uses_with(joined)
            need(joined)


def _joined(parts: Parts, node: Node, axes: list[list[Range]], box: Box) -> Node:
    import torch

    axis = len(box)
    if axis == len(axes):
        return parts.of(node, box)
    pieces = [_joined(parts, node, axes, (*box, at)) for at in axes[axis]]
    if len(pieces) == 1:
        return pieces[0]
    return parts.quantized_like(node, parts.emit(node, torch.ops.aten.cat.default, pieces, axis))


def _computed(program: ExportedProgram, original: list[Node]) -> set[Node]:
    """What is computed by a product or a projection: to join an input of its parts is no use."""
    held = constants(program)
    found: set[Node] = set()
    for node in original:
        if node.op == "call_function":
            operands = set(node.all_input_nodes)
            works = operator(node) in LINEAR | PRODUCT and not held.keys() >= operands
            if works or not found.isdisjoint(operands):
                found.add(node)
    return found


def _is_quantized(node: Node) -> bool:
    """Whether the value is joined after quantization and not here."""
    users = list(node.users)
    return operator(node) == QUANTIZE or all(operator(user) == QUANTIZE for user in users)


def _clean(program: ExportedProgram, unused: set[Node]) -> None:
    from executorch.backends.transforms.utils import delete_constant_placeholder
    from torch.export.graph_signature import TensorArgument

    graph = program.graph
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if operator(node) == DEQUANTIZE:
            _copy_for_each_user(node)
    for node in constants(program):
        if not node.users and node not in unused:
            delete_constant_placeholder(program, node)
    outputs: Any = graph.output_node().args[0]
    for spec, node in zip(program.graph_signature.output_specs, outputs, strict=True):
        if isinstance(spec.arg, TensorArgument):
            spec.arg = TensorArgument(node.name)
    _infer(program)


def _copy_for_each_user(node: Node) -> None:
    """As PT2E makes it: ExecuTorch's QNN passes look at the first user of a dequantized value."""
    for user in list(node.users)[1:]:
        with node.graph.inserting_after(node):
            user.replace_input_with(node, node.graph.node_copy(node))


def _infer(program: ExportedProgram) -> None:
    """Give every node the shape and dtype of its value."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    program.graph.lint()
    program.graph_module.recompile()
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    mode = inputs[0].fake_mode
    FakeTensorProp(program.graph_module, mode).propagate_dont_convert_inputs(*inputs)
