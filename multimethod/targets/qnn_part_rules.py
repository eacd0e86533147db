"""What makes a part of an operator's result: the same operator, on parts of its operands.

A rule is given a node and a box of its value, never the whole, and returns a node with that part,
or None where the box cannot be computed apart.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.targets.qnn_boxes import Box, broadcast, whole
from mmpack.multimethod.targets.qnn_moves import (
    MOVES,
    concatenated,
    expanded,
    item,
    moved,
    repeated,
    repeated_each,
    selected,
    sliced,
    stacked,
)
from mmpack.multimethod.targets.qnn_nodes import arguments, operands, operator, shape

if TYPE_CHECKING:
    from torch.fx import Node

    from mmpack.multimethod.targets.qnn_parts import Parts


def derive(parts: Parts, node: Node, box: Box) -> Node | None:
    """A part by the rule of the node's operator; None if there is none for it or for that box."""
    if node.target is python.getitem:
        return item(parts, node, box)
    name = operator(node)
    if name in MOVES:
        return moved(parts, node, box)
    if name in RULES:
        return RULES[name](parts, node, box)
    return each_element(parts, node, box) if is_pointwise(node) else None


def is_pointwise(node: Node) -> bool:
    import torch

    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def each_element(parts: Parts, node: Node, box: Box) -> Node | None:
    """Every element is computed from those at the same place in the operands."""
    import torch

    given = node.all_input_nodes
    if torch.broadcast_shapes(*map(shape, given)) != shape(node):  # type: ignore[no-untyped-call]
        return None
    return parts.copy(node, {x: parts.of(x, broadcast(box, shape(x))) for x in given})


def along_axes(parts: Parts, node: Node, box: Box) -> Node | None:
    """Softmax, norms and the like: elements along some axes are computed together, so these axes
    must be whole. What is left of the operands, such as a norm's weight, has these axes only."""
    given = arguments(node)
    rank = len(box)
    if "normalized_shape" in given:
        axes = set(range(rank - len(given["normalized_shape"]), rank))
    else:
        axes = _axes(given["dim"], rank)
    if any(box[axis] != (0, shape(node)[axis]) for axis in axes):
        return None
    x: Any = node.args[0]
    return parts.copy(node, {x: parts.of(x, box)})


def reduced(parts: Parts, node: Node, box: Box) -> Node | None:
    """Minimum, sum, mean over some axes."""
    given = arguments(node)
    x: Any = node.args[0]
    axes = _axes(given["dim"], len(shape(x)))
    left = iter(box)
    source: list[tuple[int, int]] = []
    for axis, size in enumerate(shape(x)):
        if axis in axes:
            source.append((0, size))
            if given["keepdim"]:
                next(left)
        else:
            source.append(next(left))
    return parts.copy(node, {x: parts.of(x, tuple(source))})


def product(parts: Parts, node: Node, box: Box) -> Node | None:
    """[..., M, K] x [..., K, N]: rows of the one, columns of the other."""
    import torch

    a, b = operands(node)[:2]
    if min(len(shape(a)), len(shape(b))) < 2:
        return None
    inner = (0, shape(a)[-1])
    of_a = parts.of(a, (*broadcast(box[:-2], shape(a)[:-2]), box[-2], inner))
    of_b = parts.of(b, (*broadcast(box[:-2], shape(b)[:-2]), inner, box[-1]))
    return parts.emit(node, torch.ops.aten.matmul.default, of_a, of_b)


def linear(parts: Parts, node: Node, box: Box) -> Node | None:
    """Rows of the weight, which has one for each channel of the result."""
    x, weight, bias = (arguments(node)[name] for name in ("input", "weight", "bias"))
    return _projected(parts, node, box[-1], {x: (*box[:-1], (0, shape(x)[-1]))}, weight, bias)


def convolution(parts: Parts, node: Node, box: Box) -> Node | None:
    """Rows of the weight, where every channel of the result sees all of the operand."""
    given = arguments(node)
    x, weight, bias = (given[name] for name in ("input", "weight", "bias"))
    if given["groups"] != 1 or given.get("transposed") or box[2:] != whole(shape(node))[2:]:
        return None
    return _projected(parts, node, box[1], {x: (box[0], *whole(shape(x))[1:])}, weight, bias)


def addmm(parts: Parts, node: Node, box: Box) -> Node | None:
    """bias [N] or [M, N] + x [M, K] x weight [K, N]."""
    bias, x, weight = (arguments(node)[name] for name in ("self", "mat1", "mat2"))
    boxes = {
        bias: broadcast(box, shape(bias)),
        x: (box[0], (0, shape(x)[1])),
        weight: ((0, shape(weight)[0]), box[1]),
    }
    return parts.copy(node, {x: parts.of(x, at) for x, at in boxes.items()})


def _projected(
    parts: Parts, node: Node, rows: Any, boxes: dict[Node, Box], weight: Node, bias: Node | None
) -> Node:
    boxes[weight] = (rows, *whole(shape(weight))[1:])
    if bias is not None:
        boxes[bias] = (rows,)
    return parts.copy(node, {x: parts.of(x, at) for x, at in boxes.items()})


def dequantized_channels(parts: Parts, node: Node, box: Box) -> Node | None:
    """A scale and a zero point for each index of one axis."""
    x, scales, zero_points, axis = operands(node)[:4]
    if (part := parts.derived(x, box)) is None:
        return None
    of = {x: part, scales: parts.of(scales, (box[axis],))}
    if zero_points is not None:
        of[zero_points] = parts.of(zero_points, (box[axis],))
    return parts.copy(node, of)


def dequantized_blocks(parts: Parts, node: Node, box: Box) -> Node | None:
    """A scale and a zero point for each block of neighbouring elements."""
    given = arguments(node)
    x, block, scale, zero = (given[k] for k in ("input", "block_size", "scale", "zero_point"))
    if any(low % n or high % n for (low, high), n in zip(box, block, strict=True)):
        return None
    if (part := parts.derived(x, box)) is None:
        return None
    of_blocks = tuple((low // n, high // n) for (low, high), n in zip(box, block, strict=True))
    of = {x: part}
    for each in (scale, zero):
        if each is not None:
            if len(shape(each)) != len(box):
                return None
            of[each] = parts.of(each, of_blocks)
    return parts.copy(node, of)


def _axes(given: Any, rank: int) -> set[int]:
    """The axes that a `dim` names; none names all."""
    named = [given] if isinstance(given, int) else given or range(rank)
    return {axis % rank for axis in named}


RULES: dict[str, Callable[[Parts, Node, Box], Node | None]] = {
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax", "log_softmax"), along_axes),
    **dict.fromkeys(("layer_norm", "rms_norm"), along_axes),
    **dict.fromkeys(("amin", "amax", "mean", "sum"), reduced),
    **dict.fromkeys(("matmul", "bmm", "mm"), product),
    **dict.fromkeys(("conv1d", "conv2d", "convolution"), convolution),
    **dict.fromkeys(("quantize_per_channel", "dequantize_per_channel"), dequantized_channels),
    "linear": linear,
    "addmm": addmm,
    "dequantize_affine": dequantized_blocks,
    "expand": expanded,
    "slice": sliced,
    "select": selected,
    "cat": concatenated,
    "stack": stacked,
    "repeat": repeated,
    "repeat_interleave": repeated_each,
}
