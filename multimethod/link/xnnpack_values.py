"""The values of an XNNPACK delegate's graph: what they are, and whether their data are there.

XNNPACK takes the number of a value's scales, and the size of its constant, from its dims; both
are read from memory that may end before them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import frozen

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.schema import Span
from mmpack.multimethod.link.xnnpack_schema import (
    BITS,
    INVALID_ID,
    Datatype,
    Graph,
    PerChannelGroupQuant,
    PerChannelQuant,
    PerTensorQuant,
    PerTokenDynamicQuant,
    QuantizedTensorValue,
    TensorValue,
    XValue,
)

MAX_RANK = 6
"""XNN_MAX_TENSOR_DIMS."""

MAX_EXTERNALS = 4096
"""What ExecuTorch's XNNPACK backend accepts."""

MAX_BYTES = 1 << 40
"""Of one value. A larger one is damaged, not large."""

INPUT, OUTPUT = 1, 2
"""XNN_VALUE_FLAG_EXTERNAL_INPUT and _OUTPUT: a value is either, or internal."""

PACKED = (Datatype.qpint8, Datatype.pfp32)
"""XNNPACK makes these itself; they have no size that a graph could declare."""


@frozen
class Value:
    """One value.

    external: its place among the delegate call's arguments, -1 if internal.
    static: whether its data are a constant.
    dynamic: whether its dims are upper bounds only.
    nonbatch: of a dynamically quantized value, how many trailing dims share a scale; else 0.
    scales: how many scales it has; 0 if not quantized by channel.
    """

    number: int
    datatype: int
    dims: tuple[int, ...]
    flags: int = 0
    external: int = -1
    static: bool = False
    dynamic: bool = False
    nonbatch: int = 0
    scales: int = 0

    def shaped(self, dims: tuple[int, ...], dynamic: bool) -> Value:
        """The same with other dims; `attrs.evolve` takes several times as long."""
        return Value(
            self.number,
            self.datatype,
            dims,
            self.flags,
            self.external,
            self.static,
            dynamic,
            self.nonbatch,
            self.scales,
        )

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Rows of 4-bit elements start at whole bytes."""
        *rows, last = self.dims or (1,)
        return math.prod(rows) * ((last * BITS[self.datatype] + 7) // 8)


Dims = tuple[int, ...]
Inputs = Sequence[Value]


def read_values(graph: Graph, rooms: Sequence[int]) -> dict[int, Value]:
    """The values by the ids that nodes refer to them with.

    rooms: bytes by index of a constant; entry 0 stands for "no data". Raises FormatError.
    """
    if graph.num_externs > MAX_EXTERNALS:
        raise FormatError(f"{graph.num_externs} external values, at most {MAX_EXTERNALS}")
    values: dict[int, Value] = {}
    externals: set[int] = set()
    for number, stored in enumerate(graph.xvalues or ()):
        try:
            identity, value = _value(number, stored, rooms)
            if identity in values or identity == INVALID_ID:
                raise FormatError(f"id {identity} is another value's, or stands for no value")
            if value.external >= graph.num_externs or value.external in externals:
                there = f"there are {graph.num_externs}"
                raise FormatError(f"external id {value.external} is taken, or not there: {there}")
        except FormatError as error:
            raise FormatError(f"value {number}: {error}") from None
        values[identity] = value
        if value.external >= 0:
            externals.add(value.external)
    return values


def _value(number: int, stored: XValue, rooms: Sequence[int]) -> tuple[int, Value]:
    union = stored.xvalue_union
    tensor = union.tensor_value if isinstance(union, QuantizedTensorValue) else union
    if tensor is None:
        raise FormatError("is missing")
    dims = tensor.dims or ()
    if len(dims) > MAX_RANK:
        raise FormatError(f"has {len(dims)} dims, at most {MAX_RANK}")
    datatype = tensor.datatype
    if datatype not in BITS or datatype in PACKED:
        raise FormatError(f"its datatype is {datatype}, expected one that XNNPACK can be given")
    external = -1 if tensor.external_id == INVALID_ID else tensor.external_id
    if tensor.flags not in (0, INPUT, OUTPUT) or bool(tensor.flags) != (external >= 0):
        expected = "1 or 2, for input or output" if external >= 0 else "0"
        raise FormatError(f"flags {tensor.flags} with external id {external}, expected {expected}")
    static = tensor.constant_buffer_idx != 0
    if static and external >= 0:
        raise FormatError("is a constant and external")
    nonbatch, scales = 0, 0
    if isinstance(union, QuantizedTensorValue):
        nonbatch, scales = _quantization(union, dims, static, rooms)
    elif tensor.dq_datatype:
        # How dynamic quantization was once stored: an input that is quantized row by row.
        if tensor.dq_datatype != Datatype.qint8 or tensor.flags != INPUT or not dims:
            raise FormatError(f"cannot be quantized to datatype {tensor.dq_datatype}")
        datatype, nonbatch = Datatype.qdint8, 1
    elif datatype not in (Datatype.fp32, Datatype.fp16, Datatype.bf16, Datatype.int32):
        raise FormatError(f"its datatype is {Datatype(datatype).name}, without quantization")
    value = Value(number, datatype, dims, tensor.flags, external, static, False, nonbatch, scales)
    if value.nbytes > MAX_BYTES:
        raise FormatError(f"has dims {list(dims)}, at most {MAX_BYTES} bytes are believed")
    if static:
        _constant(tensor, value, rooms)
    return tensor.id_out, value


def _constant(tensor: TensorValue, value: Value, rooms: Sequence[int]) -> None:
    room = room_of(tensor.constant_buffer_idx, rooms)
    if not value.elements:
        raise FormatError(f"is a constant with dims {list(value.dims)}, expected none that is 0")
    if value.nbytes > room:
        raise FormatError(
            f"needs {value.nbytes} bytes of constant {tensor.constant_buffer_idx}, which has {room}"
        )


def room_of(index: int, rooms: Sequence[int]) -> int:
    if index >= len(rooms):
        raise FormatError(f"constant {index} does not exist, there are {len(rooms)}")
    return rooms[index]


def _quantization(
    union: QuantizedTensorValue, dims: tuple[int, ...], static: bool, rooms: Sequence[int]
) -> tuple[int, int]:
    """How many trailing dims share a dynamic scale, and how many scales by channel there are."""
    assert union.tensor_value is not None
    params, datatype = union.quant_params, union.tensor_value.datatype
    if params is None:
        raise FormatError("its quantization is missing")
    allowed = {
        PerTensorQuant: (Datatype.qint8, Datatype.quint8, Datatype.qint32),
        PerChannelQuant: (Datatype.qcint8, Datatype.qcint4, Datatype.qcint32),
        PerChannelGroupQuant: (Datatype.qbint4,),
        PerTokenDynamicQuant: (Datatype.qdint8,),
    }[type(params)]
    if datatype not in allowed:
        names = " or ".join(kind.name for kind in allowed)
        raise FormatError(f"{type(params).__name__} of datatype {datatype}, expected {names}")
    if isinstance(params, PerTokenDynamicQuant):
        if static or not 1 <= params.num_nonbatch_dims <= len(dims):
            raise FormatError(f"{params.num_nonbatch_dims} of {len(dims)} dims share a scale")
        return params.num_nonbatch_dims, 0
    if isinstance(params, PerTensorQuant):
        return 0, 0
    if not static or not 0 <= params.channel_dim < len(dims):
        raise FormatError(f"is quantized by dim {params.channel_dim} of {len(dims)}")
    needed, width = dims[params.channel_dim], 4
    if isinstance(params, PerChannelGroupQuant):
        size = params.group_size
        if len(dims) != 2 or params.channel_dim or size < 1 or dims[1] % size:
            raise FormatError(f"dims {list(dims)} do not divide into groups of {size}")
        needed, width = dims[0] * (dims[1] // size), 2
    if params.scale_buffer_idx:
        scales = room_of(params.scale_buffer_idx, rooms) // width
    else:
        scales = len(params.scale or ())
    if scales < needed:
        raise FormatError(f"needs {needed} scales, there are {scales}")
    return 0, needed


def constant_room(storage: Span | bytes | None) -> int:
    """Bytes of a constant in the flatbuffer, which is where old graphs have theirs."""
    return 0 if storage is None else storage.size if isinstance(storage, Span) else len(storage)
