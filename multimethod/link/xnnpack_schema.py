"""The tables of an XNNPACK delegate's graph, as `schema.py` has those of a program.

A test holds them against the `runtime_schema.fbs` of ExecuTorch's XNNPACK backend. Many nodes
there are one table under several union tags; a class each keeps the tags apart.
"""

from __future__ import annotations

from typing import Annotated

from attrs import define

from mmpack.multimethod.link.schema import I16, I32, U32, U64, Skipped, Span

F32 = Annotated[float, "f"]

INVALID_ID = 2**32 - 1
"""XNN_INVALID_VALUE_ID: no value, or one that is not external."""


@define
class Buffer:
    storage: Span | bytes | None = None


@define
class PerChannelQuant:
    scale: tuple[F32, ...] | None = None
    channel_dim: I32 = 0
    scale_buffer_idx: U32 = 0
    num_scales: U32 = 0


@define
class PerTensorQuant:
    scale: F32 = 0.0
    zero_point: I32 = 0


@define
class PerTokenDynamicQuant:
    num_nonbatch_dims: I32 = 0


@define
class PerChannelGroupQuant:
    scale: tuple[F32, ...] | None = None
    channel_dim: I32 = 0
    group_size: I32 = 0
    scale_bf16: Skipped | None = None
    scale_buffer_idx: U32 = 0
    num_scales: U32 = 0


@define
class TensorValue:
    datatype: I16 = 0
    num_dims: U32 = 0
    dims: tuple[U32, ...] | None = None
    constant_buffer_idx: U32 = 0
    external_id: U32 = 0
    flags: U32 = 0
    id_out: U32 = 0
    dq_datatype: I16 = 0


@define
class QuantizedTensorValue:
    tensor_value: TensorValue | None = None
    quant_params: (
        PerChannelQuant | PerTensorQuant | PerTokenDynamicQuant | PerChannelGroupQuant | None
    ) = None


@define
class XValue:
    xvalue_union: TensorValue | QuantizedTensorValue | None = None


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


class Add(Node2x1): ...


class Softmax(Node1x1): ...


class Sigmoid(Node1x1): ...


class Clamp(Node1x1): ...


class Conv2d(Convolution): ...


class Div(Node2x1): ...


class AvgPooling2d(Pooling): ...


class Minimum(Node2x1): ...


class DepthwiseConv2d(Convolution): ...


class MaxPooling2d(Pooling): ...


class Multiply(Node2x1): ...


class Subtract(Node2x1): ...


class Floor(Node1x1): ...


class Convert(Node1x1): ...


class GlobalAvgPooling2d(Node1x1): ...


class SquareRoot(Node1x1): ...


class Ceiling(Node1x1): ...


class Hardswish(Node1x1): ...


class Maximum(Node2x1): ...


class Negate(Node1x1): ...


class Square(Node1x1): ...


class Abs(Node1x1): ...


class PReLU(Node2x1): ...


class Concatenate2(Concatenate): ...


class Concatenate3(Concatenate): ...


class Concatenate4(Concatenate): ...


class BatchMatrixMultiply(Node2x1): ...


class Concatenate5(Concatenate): ...


class ConvTranspose2d(Convolution): ...


class ReciprocalSquareRoot(Node1x1): ...


class Log(Node1x1): ...


class Gelu(Node1x1): ...


class Tanh(Node1x1): ...


class Exp(Node1x1): ...


class Sin(Node1x1): ...


class Copy(Node1x1): ...


class Cos(Node1x1): ...


@define
class OutputMinMax:
    output_min: F32 = 0.0
    output_max: F32 = 0.0


@define
class XNode:
    xnode_union: (
        Add
        | FullyConnected
        | Softmax
        | Sigmoid
        | StaticTranspose
        | Clamp
        | Conv2d
        | Div
        | StaticResizeBilinear2D
        | StaticConstantPad
        | AvgPooling2d
        | Minimum
        | DepthwiseConv2d
        | MaxPooling2d
        | Multiply
        | Subtract
        | Floor
        | Convert
        | GlobalAvgPooling2d
        | StaticReshape
        | ArgMaxPooling2d
        | SquareRoot
        | Ceiling
        | Hardswish
        | LeakyReLU
        | Maximum
        | Negate
        | Square
        | ELU
        | Abs
        | PReLU
        | Concatenate2
        | Concatenate3
        | Concatenate4
        | StaticSlice
        | ScaledDotProductAttention
        | BatchMatrixMultiply
        | Concatenate5
        | ConvTranspose2d
        | ReciprocalSquareRoot
        | Log
        | Gelu
        | Tanh
        | Exp
        | Sin
        | Copy
        | Cos
        | None
    ) = None
    debug_handle: U32 = 0
    output_min_max: OutputMinMax | None = None


@define
class ConstantDataOffset:
    offset: U64 = 0
    size: U64 = 0
    named_key: str | None = None


@define
class Graph:
    version: str | None = None
    xnodes: list[XNode] | None = None
    xvalues: list[XValue] | None = None
    num_externs: U32 = 0
    input_ids: tuple[U32, ...] | None = None
    output_ids: tuple[U32, ...] | None = None
    constant_buffer: list[Buffer] | None = None
    mem_buffer_sizes: Skipped | None = None
    constant_data: list[ConstantDataOffset] | None = None
