"""What XNNPACK's nodes make of the shapes of their inputs, and what they rely on.

XNNPACK computes the shape of each value anew from those of the inputs, when it is called. It
does not always check that filters, channels, axes and kernels fit these shapes. `RULES` has, for
each kind of node, a function from the node and its inputs to the dims of its output, which
raises FormatError for what does not fit. Images are [batch, height, width, channels].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.xnnpack_values import Value

Dims = tuple[int, ...]
Inputs = Sequence[Value]

ALIGN_CORNERS, KEEP_DIMS = 8, 64
TRANSPOSE = 1
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
    _rank(inputs[0], 1, 6)
    return inputs[0].dims


def broadcast(node: Any, inputs: Inputs) -> Dims:
    one, other = inputs
    rank = max(len(one.dims), len(other.dims))
    pairs = zip(_padded(one.dims, rank), _padded(other.dims, rank), strict=True)
    return tuple(b if a == 1 else a if b == 1 else _agree(inputs, a, b) for a, b in pairs)


def batch_matrix_multiply(node: n.Node2x1, inputs: Inputs) -> Dims:
    one, other = inputs
    _rank(one, 2, 6)
    _rank(other, 2, 6)
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
        raise FormatError(f"axis {axis} of {len(first)} dims")
    for value in inputs[1:]:
        _rank(value, len(first), len(first))
        for dim, (a, b) in enumerate(zip(inputs[0].dims, value.dims, strict=True)):
            if dim == axis:
                first[dim] += b
            else:
                _agree((inputs[0], value), a, b)
    return tuple(first)


def fully_connected(node: n.FullyConnected, inputs: Inputs) -> Dims:
    value, weight = inputs[:2]
    _rank(value, 1, 6)
    _rank(weight, 2, 2)
    made, taken = weight.dims[::-1] if node.flags & TRANSPOSE else weight.dims
    if value.nonbatch > 1:
        raise FormatError(f"{value.nonbatch} dims of its input share a scale, expected one")
    _channels(value, taken)
    _weights(weight, made)
    _bias(inputs, made)
    return (*value.dims[:-1], made)


def convolution(node: n.Convolution, inputs: Inputs) -> Dims:
    height, width = _kernel(node)
    made = node.groups * node.group_output_channels
    _filter(inputs[1], (made, height, width, node.group_input_channels))
    return _convolved(node, inputs, made)


def depthwise(node: n.Convolution, inputs: Inputs) -> Dims:
    height, width = _kernel(node)
    made = node.group_output_channels // node.group_input_channels * node.groups
    _filter(inputs[1], (1, height, width, made))
    return _convolved(node, inputs, made, taken=node.groups)


def transposed_convolution(node: n.Convolution, inputs: Inputs) -> Dims:
    height, width = _kernel(node)
    made = node.groups * node.group_output_channels
    _filter(inputs[1], (made, height, width, node.group_input_channels))
    _image(inputs[0], node.groups * node.group_input_channels)
    _weights(inputs[1], made)
    _bias(inputs, made)
    if node.adjustment_height >= max(node.subsampling_height, node.dilation_height) or (
        node.adjustment_width >= max(node.subsampling_width, node.dilation_width)
    ):
        raise FormatError(f"adjustments {node.adjustment_height}, {node.adjustment_width}")
    _, height, width, _ = inputs[0].dims
    rows = _spread(
        node.subsampling_height * (height - 1) + node.adjustment_height,
        (node.kernel_height - 1) * node.dilation_height + 1,
        node.padding_top + node.padding_bottom,
    )
    columns = _spread(
        node.subsampling_width * (width - 1) + node.adjustment_width,
        (node.kernel_width - 1) * node.dilation_width + 1,
        node.padding_left + node.padding_right,
    )
    return inputs[0].dims[0], rows, columns, made


def pooling(node: n.Pooling, inputs: Inputs) -> Dims:
    dilations = (node.dilation_height, node.dilation_width)
    if not isinstance(node, u.MaxPooling2d):
        dilations = (1, 1)  # others leave it unset
    return _pooled(node, inputs, dilations, (node.stride_height, node.stride_width))


def argmax_pooling(node: n.ArgMaxPooling2d, inputs: Inputs) -> Dims:
    return _pooled(node, inputs, (1, 1), (node.pooling_height, node.pooling_width))


def global_pooling(node: n.Node1x1, inputs: Inputs) -> Dims:
    _image(inputs[0])
    batch, _, _, channels = inputs[0].dims
    return (batch, 1, 1, channels) if node.flags & KEEP_DIMS else (batch, channels)


def resize(node: n.StaticResizeBilinear2D, inputs: Inputs) -> Dims:
    _image(inputs[0])
    if not node.new_height or not node.new_width:
        raise FormatError(f"to {node.new_height} x {node.new_width}")
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
        raise FormatError(f"paddings {list(before)}, {list(after)} of {len(dims)} dims")
    return tuple(size + a + b for size, a, b in zip(dims, before, after, strict=True))


def reshape(node: n.StaticReshape, inputs: Inputs) -> Dims:
    """A 0 in the new shape is what is left over."""
    shape, elements = list(node.new_shape or ()), inputs[0].elements
    if len(shape) > 6 or shape.count(0) > 1:
        raise FormatError(f"to {shape}")
    rest = math.prod(size or 1 for size in shape)
    if 0 in shape:
        shape[shape.index(0)] = elements // rest
    if math.prod(shape) != elements:
        raise FormatError(f"dims {list(inputs[0].dims)} to {list(node.new_shape or ())}")
    return tuple(shape)


def cut(node: n.StaticSlice, inputs: Inputs) -> Dims:
    dims, offsets, sizes = inputs[0].dims, node.offsets or (), node.sizes or ()
    if len(offsets) != len(dims) or len(sizes) != len(dims):
        raise FormatError(f"offsets {list(offsets)}, sizes {list(sizes)} of {len(dims)} dims")
    for size, offset, wanted in zip(dims, offsets, sizes, strict=True):
        if not wanted or offset + wanted > size:
            raise FormatError(f"{wanted} from {offset} of {size}")
    return sizes


RULES: dict[type, Callable[[Any, Inputs], Dims]] = {
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


def _padded(dims: Dims, rank: int) -> Dims:
    return (*[1] * (rank - len(dims)), *dims)


def _agree(inputs: Inputs, one: int, other: int) -> int:
    """Upper bounds of sizes that are equal at run time may differ."""
    if one != other and not all(value.dynamic for value in inputs):
        shapes = " and ".join(str(list(value.dims)) for value in inputs)
        raise FormatError(f"dims {shapes} do not fit")
    return min(one, other)


def _rank(value: Value, least: int, most: int) -> None:
    if not least <= len(value.dims) <= most:
        raise FormatError(f"value {value.number} has {len(value.dims)} dims")


def _channels(value: Value, expected: int) -> None:
    if value.dims[-1] != expected:
        raise FormatError(
            f"value {value.number} has {value.dims[-1]} channels, expected {expected}"
        )


def _image(value: Value, channels: int | None = None) -> None:
    _rank(value, 4, 4)
    if channels is not None:
        _channels(value, channels)
    if not value.elements:
        raise FormatError(f"value {value.number} has dims {list(value.dims)}")


def _kernel(node: n.Convolution) -> tuple[int, int]:
    """Height and width. What is divided by, or counted, must not be zero."""
    for name in ("kernel", "subsampling", "dilation"):
        for side in ("height", "width"):
            if not getattr(node, f"{name}_{side}"):
                raise FormatError(f"{name} {side} is 0")
    if not (node.groups and node.group_input_channels and node.group_output_channels):
        raise FormatError("groups, or their channels, are 0")
    return node.kernel_height, node.kernel_width


def _filter(value: Value, expected: Dims) -> None:
    if value.dims != expected:
        raise FormatError(f"its filter has dims {list(value.dims)}, expected {list(expected)}")


def _weights(value: Value, made: int) -> None:
    if not value.elements:
        raise FormatError(f"value {value.number} has dims {list(value.dims)}")
    if value.scales and value.scales < made:
        raise FormatError(f"value {value.number} has {value.scales} scales, expected {made}")


def _bias(inputs: Inputs, made: int) -> None:
    if len(inputs) > 2 and inputs[2].elements < made:
        raise FormatError(f"value {inputs[2].number} has dims {list(inputs[2].dims)}, not {made}")


def _convolved(node: n.Convolution, inputs: Inputs, made: int, *, taken: int | None = None) -> Dims:
    value = inputs[0]
    _image(value, node.groups * node.group_input_channels if taken is None else taken)
    _weights(inputs[1], made)
    _bias(inputs, made)
    if value.nonbatch > 3:
        raise FormatError(f"{value.nonbatch} dims of its input share a scale, at most 3")
    batch, height, width, _ = value.dims
    rows = _window(
        height + node.padding_top + node.padding_bottom,
        (node.kernel_height - 1) * node.dilation_height + 1,
        node.subsampling_height,
    )
    columns = _window(
        width + node.padding_left + node.padding_right,
        (node.kernel_width - 1) * node.dilation_width + 1,
        node.subsampling_width,
    )
    return batch, rows, columns, made


def _pooled(
    node: n.Pooling | n.ArgMaxPooling2d,
    inputs: Inputs,
    dilations: tuple[int, int],
    strides: tuple[int, int],
) -> Dims:
    value = inputs[0]
    _image(value)
    sides = (node.pooling_height, node.pooling_width)
    if not all((*sides, *dilations, *strides)):
        raise FormatError(f"windows {sides}, dilations {dilations}, strides {strides}")
    reach = [(side - 1) * dilation + 1 for side, dilation in zip(sides, dilations, strict=True)]
    paddings = (node.padding_top, node.padding_bottom, node.padding_left, node.padding_right)
    if max(paddings[:2]) >= reach[0] > 1 or max(paddings[2:]) >= reach[1] > 1:
        raise FormatError(f"paddings {paddings} of a window of {reach}")
    rows = _window(value.dims[1] + sum(paddings[:2]), reach[0], strides[0])
    columns = _window(value.dims[2] + sum(paddings[2:]), reach[1], strides[1])
    return value.dims[0], rows, columns, value.dims[3]


def _spread(size: int, reach: int, padding: int) -> int:
    """What is left of a transposed convolution's output without its padding."""
    if padding >= size + reach:
        raise FormatError(f"a padding of {padding} leaves nothing of {size + reach}")
    return size + reach - padding


def _window(size: int, reach: int, stride: int) -> int:
    """How often a window of `reach` fits, `stride` apart."""
    if reach > size:
        raise FormatError(f"a window of {reach} on {size}")
    return (size - reach) // stride + 1
