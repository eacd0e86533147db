"""The tables that the nodes of an XNNPACK delegate's graph are stored as.

What each tag of the nodes' union stands for is in `xnnpack_union.py`.
"""

from __future__ import annotations

from attrs import define

from mmpack.multimethod.link.schema import F32, U32


@define
class Node1x1:
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class Node2x1:
    input1_id: U32 = 0
    input2_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class Pooling:
    padding_top: U32 = 0
    padding_right: U32 = 0
    padding_bottom: U32 = 0
    padding_left: U32 = 0
    pooling_height: U32 = 0
    pooling_width: U32 = 0
    stride_height: U32 = 0
    stride_width: U32 = 0
    dilation_height: U32 = 0
    dilation_width: U32 = 0
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class Convolution:
    padding_top: U32 = 0
    padding_right: U32 = 0
    padding_bottom: U32 = 0
    padding_left: U32 = 0
    kernel_height: U32 = 0
    kernel_width: U32 = 0
    subsampling_height: U32 = 0
    subsampling_width: U32 = 0
    dilation_height: U32 = 0
    dilation_width: U32 = 0
    group_input_channels: U32 = 0
    group_output_channels: U32 = 0
    groups: U32 = 0
    adjustment_height: U32 = 0
    adjustment_width: U32 = 0
    input1_id: U32 = 0
    filter_id: U32 = 0
    bias_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class Concatenate:
    axis: U32 = 0
    input1_id: U32 = 0
    input2_id: U32 = 0
    input3_id: U32 = 0
    input4_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0
    input5_id: U32 = 0


@define
class FullyConnected:
    input1_id: U32 = 0
    filter_id: U32 = 0
    bias_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class StaticTranspose:
    num_dims: U32 = 0
    perm: tuple[U32, ...] | None = None
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class StaticResizeBilinear2D:
    new_height: U32 = 0
    new_width: U32 = 0
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class StaticConstantPad:
    pre_paddings: tuple[U32, ...] | None = None
    post_paddings: tuple[U32, ...] | None = None
    padding_value: F32 = 0.0
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class StaticReshape:
    num_dims: U32 = 0
    new_shape: tuple[U32, ...] | None = None
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class ArgMaxPooling2d:
    padding_top: U32 = 0
    padding_right: U32 = 0
    padding_bottom: U32 = 0
    padding_left: U32 = 0
    pooling_height: U32 = 0
    pooling_width: U32 = 0
    input_id: U32 = 0
    output_value_id: U32 = 0
    output_index_id: U32 = 0
    flags: U32 = 0


@define
class LeakyReLU:
    negative_slope: F32 = 0.0
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class ELU:
    alpha: F32 = 0.0
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class StaticSlice:
    num_dims: U32 = 0
    offsets: tuple[U32, ...] | None = None
    sizes: tuple[U32, ...] | None = None
    input_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0


@define
class ScaledDotProductAttention:
    query_id: U32 = 0
    key_id: U32 = 0
    value_id: U32 = 0
    scale_id: U32 = 0
    mask_id: U32 = 0
    output_id: U32 = 0
    flags: U32 = 0
