"""The union of an XNNPACK delegate's nodes, in the order of its tags.

Many tags stand for the same table; a class each keeps them apart.
"""

from __future__ import annotations

from attrs import define

from mmpack.multimethod.link.schema import F32, U32, Skipped
from mmpack.multimethod.link.xnnpack_nodes import (
    ELU,
    ArgMaxPooling2d,
    Concatenate,
    Convolution,
    FullyConnected,
    LeakyReLU,
    Node1x1,
    Node2x1,
    Pooling,
    ScaledDotProductAttention,
    StaticConstantPad,
    StaticReshape,
    StaticResizeBilinear2D,
    StaticSlice,
    StaticTranspose,
)


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


Node = (
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
)


@define
class XNode:
    """A node whose tag is not in this union, of a newer schema, is `Skipped`."""

    xnode_union: Node | Skipped | None = None
    debug_handle: U32 = 0
    output_min_max: OutputMinMax | None = None
