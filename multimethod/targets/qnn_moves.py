"""Rules for operators that compute nothing and only put elements elsewhere (see
`qnn_part_rules.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.targets.qnn_boxes import Box, broadcast, sizes, viewed
from mmpack.multimethod.targets.qnn_nodes import arguments, operator, shape

if TYPE_CHECKING:
    from torch.fx import Node

    from mmpack.multimethod.targets.qnn_parts import Parts

QUANTIZE, DEQUANTIZE = "quantize_per_tensor", "dequantize_per_tensor"


def source(node: Node, box: Box) -> Box | None:
    """Where in its operand the elements of a box are, for an operator of `MOVES`."""
    return MOVES[operator(node)](node, box)


def moved(parts: Parts, node: Node, box: Box) -> Node | None:
    """A part of the result of an operator of `MOVES`."""
    x: Any = node.args[0]
    if (at := source(node, box)) is None:
        return None
    if operator(node) in (QUANTIZE, DEQUANTIZE):
        return _requantized(parts, node, at)
    part = parts.of(x, at)
    if MOVES[operator(node)] is _viewed:
        return _as(parts, node, part, sizes(at), box)
    return parts.copy(node, {x: part})


def _requantized(parts: Parts, node: Node, box: Box) -> Node | None:
    """What is cut is cut after it was quantized: the operator that cuts is quantized then."""
    x: Any = node.args[0]
    if (part := parts.derived(x, box)) is None:
        return None
    undone = operator(node) == QUANTIZE and operator(part) == DEQUANTIZE
    if undone and part.args[1:] == node.args[1:]:
        return part.all_input_nodes[0]  # nothing is computed between the two any more
    return parts.copy(node, {x: part})


def _as(parts: Parts, node: Node, part: Node, size: list[int], box: Box) -> Node:
    """A part of that size in the shape of the box."""
    import torch

    if size == sizes(box):
        return part
    return parts.emit(node, torch.ops.aten.reshape.default, part, sizes(box))


def _same(node: Node, box: Box) -> Box | None:
    return box


def _viewed(node: Node, box: Box) -> Box | None:
    return viewed(box, shape(node), shape(node.args[0]))


def _permuted(node: Node, box: Box) -> Box | None:
    given = arguments(node)
    axes = list(range(len(box)))
    if "dims" in given:
        axes = [axis % len(box) for axis in given["dims"]]
    else:
        one, other = given.get("dim0", 0), given.get("dim1", -1)
        axes[one], axes[other] = axes[other], axes[one]
    return tuple(box[axes.index(axis)] for axis in range(len(box)))


MOVES: dict[str, Callable[[Node, Box], Box | None]] = {
    **dict.fromkeys(
        ("clone", "contiguous", "to", "_to_copy", "alias", "detach", "detach_", "dropout"), _same
    ),
    **dict.fromkeys((QUANTIZE, DEQUANTIZE), _same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten"), _viewed),
    **dict.fromkeys(("squeeze", "unsqueeze"), _viewed),
    **dict.fromkeys(("permute", "transpose", "t"), _permuted),
}
"""Operators of one operand whose elements all are in the result, once."""


def expanded(parts: Parts, node: Node, box: Box) -> Node | None:
    import torch

    x: Any = node.args[0]
    at = broadcast(box, shape(x))
    part = parts.of(x, at)
    if sizes(at) == sizes(box):
        return part
    return parts.emit(node, torch.ops.aten.expand.default, part, sizes(box))


def sliced(parts: Parts, node: Node, box: Box) -> Node | None:
    given = arguments(node)
    x: Any = node.args[0]
    axis = given["dim"] % len(box)
    start, end, _ = slice(given["start"], given["end"]).indices(shape(x)[axis])
    return _of_range(parts, node, box, x, axis, (start, end, given["step"]))


def item(parts: Parts, node: Node, box: Box) -> Node | None:
    """One of the tensors that a tensor was split into."""
    split: Any = node.args[0]
    number: Any = node.args[1]
    name = operator(split)
    if name not in ("split", "split_with_sizes", "chunk", "unbind"):
        return None
    x = split.args[0]
    axis = arguments(split)["dim"] % len(shape(x))
    if name == "unbind":
        return _of_index(parts, node, box, x, axis, number)
    lengths = [each.shape[axis] for each in split.meta["val"]]
    start = sum(lengths[:number])
    return _of_range(parts, node, box, x, axis, (start, start + lengths[number], 1))


def selected(parts: Parts, node: Node, box: Box) -> Node | None:
    given = arguments(node)
    x: Any = node.args[0]
    axis = given["dim"] % len(shape(x))
    return _of_index(parts, node, box, x, axis, given["index"] % shape(x)[axis])


def _of_range(
    parts: Parts, node: Node, box: Box, x: Node, axis: int, along: tuple[int, int, int]
) -> Node | None:
    """x[..., start:end:step, ...]. What is wanted whole along the axis is sliced from a part of x
    that is whole there too: half of a head is not a part of its own."""
    import torch

    start, end, step = along
    if box[axis] == (0, shape(node)[axis]):
        part = parts.of(x, (*box[:axis], (0, shape(x)[axis]), *box[axis + 1 :]))
        return parts.emit(node, torch.ops.aten.slice.Tensor, part, axis, start, end, step)
    if step != 1:
        return None
    low, high = box[axis]
    return parts.of(x, (*box[:axis], (start + low, start + high), *box[axis + 1 :]))


def _of_index(parts: Parts, node: Node, box: Box, x: Node, axis: int, index: int) -> Node:
    at = (*box[:axis], (index, index + 1), *box[axis:])
    return _as(parts, node, parts.of(x, at), sizes(at), box)


def concatenated(parts: Parts, node: Node, box: Box) -> Node | None:
    import torch

    given = arguments(node)
    axis = given["dim"] % len(box)
    low, high = box[axis]
    start, pieces = 0, []
    for x in given["tensors"]:
        end = start + shape(x)[axis]
        if max(low, start) < min(high, end):
            here = (max(low, start) - start, min(high, end) - start)
            pieces.append(parts.of(x, (*box[:axis], here, *box[axis + 1 :])))
        start = end
    if len(pieces) == 1:
        return pieces[0]
    return parts.emit(node, torch.ops.aten.cat.default, pieces, axis)


def stacked(parts: Parts, node: Node, box: Box) -> Node | None:
    import torch

    given = arguments(node)
    axis = given["dim"] % len(box)
    at = (*box[:axis], *box[axis + 1 :])
    pieces = [parts.of(x, at) for x in given["tensors"][slice(*box[axis])]]
    return parts.emit(node, torch.ops.aten.stack.default, pieces, axis)


def repeated(parts: Parts, node: Node, box: Box) -> Node | None:
    """x, so many times along each axis: [a, b, a, b]."""
    import torch

    x: Any = node.args[0]
    times = list(arguments(node)["repeats"])
    new = len(box) - len(shape(x))
    at: list[tuple[int, int]] = []
    for axis, (low, high) in enumerate(box):
        if axis < new or (low, high) == (0, shape(node)[axis]):
            times[axis] = high - low if axis < new else times[axis]
            at += [] if axis < new else [(0, shape(x)[axis - new])]
            continue
        length = shape(x)[axis - new]
        if low // length != (high - 1) // length:
            return None
        at.append((low % length, (high - 1) % length + 1))
        times[axis] = 1
    part = parts.of(x, tuple(at))
    if not new and set(times) == {1}:
        return part
    return parts.emit(node, torch.ops.aten.repeat.default, part, times)


def repeated_each(parts: Parts, node: Node, box: Box) -> Node | None:
    """Each index of one axis so many times: [a, a, b, b]."""
    given = arguments(node)
    x: Any = node.args[0]
    times, axis = given["repeats"], given["dim"]
    if not isinstance(times, int) or axis is None:
        return None
    axis %= len(box)
    low, high = box[axis]
    if high - low > 1:
        at = (*box[:axis], (0, shape(x)[axis]), *box[axis + 1 :])
        return parts.copy(node, {x: parts.of(x, at)}) if high - low == shape(node)[axis] else None
    return parts.of(x, (*box[:axis], (low // times, low // times + 1), *box[axis + 1 :]))
