"""What XNNPACK's nodes make of the shapes of their inputs, and what they rely on.

XNNPACK computes the shape of each value anew from those of the inputs, when it is called. It
does not always check that filters, channels, axes and kernels fit these shapes. `RULES` has, for
each kind of node, a function from the node and its inputs to the dims of its output, which
raises FormatError for what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.xnnpack_images import (
    KEEP_DIMS,
    argmax_pooling,
    check_bias,
    check_channels,
    check_image,
    check_rank,
    check_weights,
    convolution,
    depthwise,
    global_pooling,
    pooling,
    transposed_convolution,
)
from mmpack.multimethod.link.xnnpack_values import Dims, Inputs

Rule = Callable[[Any, Inputs], Dims]

TRANSPOSE, ALIGN_CORNERS = 1, 8
FLAGS: dict[type, int] = {
    u.AvgPooling2d: KEEP_DIMS,
    u.MaxPooling2d: KEEP_DIMS,
    u.GlobalAvgPooling2d: KEEP_DIMS,
    n.ArgMaxPooling2d: KEEP_DIMS,
    n.StaticResizeBilinear2D: ALIGN_CORNERS,
    n.FullyConnected: TRANSPOSE,
    u.BatchMatrixMultiply: TRANSPOSE,
}
"""The flags that ExecuTorch's exporter may set; XNNPACK takes others for what they are not."""


def same(node: Any, inputs: Inputs) -> Dims:
    return inputs[0].dims


def softmax(node: Any, inputs: Inputs) -> Dims:
    check_rank(inputs[0], 1, 6)
    return inputs[0].dims


def broadcast(node: Any, inputs: Inputs) -> Dims:
    one, other = inputs
    rank = max(len(one.dims), len(other.dims))
    pairs = zip(_padded(one.dims, rank), _padded(other.dims, rank), strict=True)
    return tuple(b if a == 1 else a if b == 1 else _agree(inputs, a, b) for a, b in pairs)


def batch_matrix_multiply(node: n.Node2x1, inputs: Inputs) -> Dims:
    one, other = inputs
    check_rank(one, 2, 6)
    check_rank(other, 2, 6)
    rank = max(len(one.dims), len(other.dims))
    *batch, rows, inner = _padded(one.dims, rank)
    *batches, middle, columns = _padded(other.dims, rank)
    if node.flags & TRANSPOSE:
        middle, columns = columns, middle
    _agree(inputs, inner, middle)
    pairs = zip(batch, batches, strict=True)
    made = [b if a == 1 else a if b == 1 else _agree(inputs, a, b) for a, b in pairs]
    return (*made, rows, columns)


def concatenate(node: n.Concatenate, inputs: Inputs) -> Dims:
    first, axis = list(inputs[0].dims), node.axis
    if axis >= len(first):
        raise FormatError(f"axis {axis}, expected one of {len(first)} dims")
    for value in inputs[1:]:
        check_rank(value, len(first), len(first))
        for dim, (a, b) in enumerate(zip(inputs[0].dims, value.dims, strict=True)):
            if dim == axis:
                first[dim] += b
            else:
                _agree((inputs[0], value), a, b)
    return tuple(first)


def fully_connected(node: n.FullyConnected, inputs: Inputs) -> Dims:
    value, weight = inputs[:2]
    check_rank(value, 1, 6)
    check_rank(weight, 2, 2)
    made, taken = weight.dims[::-1] if node.flags & TRANSPOSE else weight.dims
    if value.nonbatch > 1:
        raise FormatError(f"{value.nonbatch} dims of its input share a scale, expected one")
    check_channels(value, taken)
    check_weights(weight, made)
    check_bias(inputs, made)
    return (*value.dims[:-1], made)


def resize(node: n.StaticResizeBilinear2D, inputs: Inputs) -> Dims:
    check_image(inputs[0])
    if not node.new_height or not node.new_width:
        raise FormatError(f"to {node.new_height} x {node.new_width}, expected none that is 0")
    batch, _, _, channels = inputs[0].dims
    return batch, node.new_height, node.new_width, channels


def transpose(node: n.StaticTranspose, inputs: Inputs) -> Dims:
    dims, order = inputs[0].dims, node.perm or ()
    if not order or sorted(order) != list(range(len(dims))):
        raise FormatError(f"{list(order)} is no order of {len(dims)} dims")
    return tuple(dims[place] for place in order)


def pad(node: n.StaticConstantPad, inputs: Inputs) -> Dims:
    dims, before, after = inputs[0].dims, node.pre_paddings or (), node.post_paddings or ()
    if len(before) != len(dims) or len(after) != len(dims):
        raise FormatError(f"paddings {list(before)}, {list(after)}, expected {len(dims)} each")
    return tuple(size + a + b for size, a, b in zip(dims, before, after, strict=True))


def reshape(node: n.StaticReshape, inputs: Inputs) -> Dims:
    """A 0 in the new shape is what is left over; of an upper bound it may be a fraction."""
    shape, elements = list(node.new_shape or ()), inputs[0].elements
    if len(shape) > 6 or shape.count(0) > 1:
        raise FormatError(f"to {shape}, expected at most 6 dims and one 0")
    rest = math.prod(size or 1 for size in shape)
    if 0 in shape:
        shape[shape.index(0)] = -(-elements // rest)
    if math.prod(shape) != elements and not inputs[0].dynamic:
        raise FormatError(f"dims {list(inputs[0].dims)} to {list(node.new_shape or ())}")
    return tuple(shape)


def cut(node: n.StaticSlice, inputs: Inputs) -> Dims:
    dims, offsets, sizes = inputs[0].dims, node.offsets or (), node.sizes or ()
    if len(offsets) != len(dims) or len(sizes) != len(dims):
        raise FormatError(
            f"offsets {list(offsets)}, sizes {list(sizes)}, expected {len(dims)} each"
        )
    for size, offset, wanted in zip(dims, offsets, sizes, strict=True):
        if not wanted or offset + wanted > size:
            raise FormatError(f"takes {wanted} from {offset} of a dim of {size}")
    return sizes


RULES: dict[type, Rule] = {
    n.Node1x1: same,
    n.LeakyReLU: same,
    n.ELU: same,
    n.Node2x1: broadcast,
    n.Concatenate: concatenate,
    n.FullyConnected: fully_connected,
    n.Pooling: pooling,
    n.ArgMaxPooling2d: argmax_pooling,
    n.StaticResizeBilinear2D: resize,
    n.StaticTranspose: transpose,
    n.StaticConstantPad: pad,
    n.StaticReshape: reshape,
    n.StaticSlice: cut,
    u.Softmax: softmax,
    u.GlobalAvgPooling2d: global_pooling,
    u.BatchMatrixMultiply: batch_matrix_multiply,
    u.Conv2d: convolution,
    u.DepthwiseConv2d: depthwise,
    u.ConvTranspose2d: transposed_convolution,
}
"""By the node's class, or by that of its table."""


def rule_of(node: object) -> Rule | None:
    """The rule for a node; None for one that the runtime does not have, as it refuses the graph."""
    return next((RULES[table] for table in type(node).__mro__ if table in RULES), None)


def allowed_flags(node: object) -> int:
    return FLAGS.get(type(node), 0)


def _padded(dims: Dims, rank: int) -> Dims:
    return (*[1] * (rank - len(dims)), *dims)


def _agree(inputs: Inputs, one: int, other: int) -> int:
    """Upper bounds of sizes that are equal at run time may differ."""
    if one != other and not all(value.dynamic for value in inputs):
        shapes = " and ".join(str(list(value.dims)) for value in inputs)
        raise FormatError(f"dims {shapes} do not fit")
    return min(one, other)
