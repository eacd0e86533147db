"""The tables of an XNNPACK delegate's graph, as `schema.py` has those of a program.

A test holds them, and those of `xnnpack_nodes.py` and `xnnpack_union.py`, against the
`runtime_schema.fbs` of ExecuTorch's XNNPACK backend.
"""

from __future__ import annotations

from enum import IntEnum

from attrs import define

from mmpack.multimethod.link.schema import F32, I16, I32, U32, U64, Skipped, Span
from mmpack.multimethod.link.xnnpack_union import XNode

INVALID_ID = 2**32 - 1
"""XNN_INVALID_VALUE_ID: no value, or one that is not external."""


class Datatype(IntEnum):
    """XNNDatatype. `BITS` has the width of an element of each."""

    fp32 = 1
    fp16 = 2
    qint8 = 3
    quint8 = 4
    qint32 = 5
    qcint8 = 6
    qcint32 = 7
    qcint4 = 8
    qdint8 = 9
    qbint4 = 10
    qpint8 = 11
    int32 = 12
    pfp32 = 13
    bf16 = 14


BITS: dict[int, int] = {
    **dict.fromkeys((1, 5, 7, 12, 13), 32),
    **dict.fromkeys((2, 14), 16),
    **dict.fromkeys((3, 4, 6, 9, 11), 8),
    **dict.fromkeys((8, 10), 4),
}


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
