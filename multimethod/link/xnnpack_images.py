"""What XNNPACK's convolutions and pools rely on, and the dims that they make.

Images are [batch, height, width, channels]; the dims of a filter, and of an image's windows, are
read without being checked against the sizes of what they are in.
"""

from __future__ import annotations

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.xnnpack_values import Dims, Inputs, Value

KEEP_DIMS = 64
"""XNN_FLAG_KEEP_DIMS: reduced dims stay, with size 1."""


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
    check_image(inputs[0], node.groups * node.group_input_channels)
    check_weights(inputs[1], made)
    check_bias(inputs, made)
    if node.adjustment_height >= max(node.subsampling_height, node.dilation_height) or (
        node.adjustment_width >= max(node.subsampling_width, node.dilation_width)
    ):
        raise FormatError(
            f"adjustments {node.adjustment_height}, {node.adjustment_width}, expected less than "
            f"the strides or dilations"
        )
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
    check_image(inputs[0])
    batch, _, _, channels = inputs[0].dims
    return (batch, 1, 1, channels) if node.flags & KEEP_DIMS else (batch, channels)


def check_rank(value: Value, least: int, most: int) -> None:
    if not least <= len(value.dims) <= most:
        expected = least if least == most else f"{least} to {most}"
        raise FormatError(f"value {value.number} has {len(value.dims)} dims, expected {expected}")


def check_channels(value: Value, expected: int) -> None:
    if value.dims[-1] != expected:
        raise FormatError(
            f"value {value.number} has {value.dims[-1]} channels, expected {expected}"
        )


def check_image(value: Value, channels: int | None = None) -> None:
    check_rank(value, 4, 4)
    if channels is not None:
        check_channels(value, channels)
    check_elements(value)


def check_elements(value: Value) -> None:
    if not value.elements:
        raise FormatError(
            f"value {value.number} has dims {list(value.dims)}, expected none that is 0"
        )


def _kernel(node: n.Convolution) -> tuple[int, int]:
    """Height and width. What is divided by, or counted, must not be zero."""
    for name in ("kernel", "subsampling", "dilation"):
        for side in ("height", "width"):
            if not getattr(node, f"{name}_{side}"):
                raise FormatError(f"{name} {side} is 0, expected at least 1")
    if not (node.groups and node.group_input_channels and node.group_output_channels):
        raise FormatError("groups, or their channels, are 0, expected at least 1")
    return node.kernel_height, node.kernel_width


def _filter(value: Value, expected: Dims) -> None:
    if value.dims != expected:
        raise FormatError(f"its filter has dims {list(value.dims)}, expected {list(expected)}")


def check_weights(value: Value, made: int) -> None:
    check_elements(value)
    if value.scales and value.scales < made:
        raise FormatError(f"value {value.number} has {value.scales} scales, expected {made}")


def check_bias(inputs: Inputs, made: int) -> None:
    if len(inputs) > 2 and inputs[2].elements < made:
        raise FormatError(f"value {inputs[2].number} has dims {list(inputs[2].dims)}, not {made}")


def _convolved(node: n.Convolution, inputs: Inputs, made: int, *, taken: int | None = None) -> Dims:
    value = inputs[0]
    check_image(value, node.groups * node.group_input_channels if taken is None else taken)
    check_weights(inputs[1], made)
    check_bias(inputs, made)
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
    check_image(value)
    sides = (node.pooling_height, node.pooling_width)
    if not all((*sides, *dilations, *strides)):
        raise FormatError(
            f"windows {sides}, dilations {dilations}, strides {strides}, expected none that is 0"
        )
    reach = [(side - 1) * dilation + 1 for side, dilation in zip(sides, dilations, strict=True)]
    paddings = (node.padding_top, node.padding_bottom, node.padding_left, node.padding_right)
    if max(paddings[:2]) >= reach[0] > 1 or max(paddings[2:]) >= reach[1] > 1:
        raise FormatError(f"paddings {paddings}, expected less than the window, {reach}")
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
        raise FormatError(f"a window of {reach} on {size}, expected at most {size}")
    return (size - reach) // stride + 1
