"""The tables of an ExecuTorch program, as records: these attrs classes ARE the schema.

A field's place in its class is its slot in the flatbuffer table, its annotation says how it is
stored, and `flatbuffer.py` reads and writes them by nothing else. A test holds them against
ExecuTorch's own `program.fbs`.

Tables and vectors that a file does not have are None (the runtime tells an absent vector from
an empty one). Vectors of numbers are tuples, vectors of tables are lists. `[ubyte]` is `bytes`
where it is small and `Span` where it may be gigabytes. Enums are plain ints, as a file may hold
any; the classes below name the known ones.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from attrs import define, frozen

I8 = Annotated[int, "b"]
U8 = Annotated[int, "B"]
I16 = Annotated[int, "h"]
I32 = Annotated[int, "i"]
U32 = Annotated[int, "I"]
I64 = Annotated[int, "q"]
U64 = Annotated[int, "Q"]
F32 = Annotated[float, "f"]
F64 = Annotated[float, "d"]
B8 = Annotated[bool, "?"]


@frozen
class Span:
    """Bytes that stay in the file: `size` of them at `offset`, counted from the file's start."""

    offset: int
    size: int


class Skipped:
    """A vector or table that is not read: only whether it is there is known."""


class ScalarType(IntEnum):
    """Element types. `ELEMENT_SIZES` has the ones that the runtime accepts."""

    uint8 = 0
    int8 = 1
    int16 = 2
    int32 = 3
    int64 = 4
    float16 = 5
    float32 = 6
    float64 = 7
    complex32 = 8
    complex64 = 9
    complex128 = 10
    bool = 11
    qint8 = 12
    quint8 = 13
    qint32 = 14
    bfloat16 = 15
    quint4x2 = 16
    quint2x4 = 17
    bits16 = 22
    float8_e5m2 = 23
    float8_e4m3fn = 24
    float8_e5m2fnuz = 25
    float8_e4m3fnuz = 26
    uint16 = 27
    uint32 = 28
    uint64 = 29


ELEMENT_SIZES: dict[int, int] = {
    **dict.fromkeys((0, 1, 11, 12, 13, 16, 17, 23, 24, 25, 26), 1),
    **dict.fromkeys((2, 5, 15, 22, 27), 2),
    **dict.fromkeys((3, 6, 8, 14, 28), 4),
    **dict.fromkeys((4, 7, 9, 29), 8),
    10: 16,
}
"""Bytes per element by scalar type."""


class Dynamism(IntEnum):
    """What may change about a tensor's sizes: nothing; anything up to them; anything."""

    STATIC = 0
    DYNAMIC_BOUND = 1
    DYNAMIC_UNBOUND = 2


class Location(IntEnum):
    """Where a tensor's data is: in a segment of this file, or in another file."""

    SEGMENT = 0
    EXTERNAL = 1


class DataLocation(IntEnum):
    """Where a delegate's data is: in the flatbuffer, or in a segment."""

    INLINE = 0
    SEGMENT = 1


@define
class ContainerMetadata:
    encoded_inp_str: str | None = None
    encoded_out_str: str | None = None


@define
class Null:
    pass


@define
class AllocationDetails:
    """Memory `memory_id` (counted from 1), at an offset of low + high * 2**32 bytes."""

    memory_id: U32 = 0
    memory_offset_low: U32 = 0
    memory_offset_high: U32 = 0

    @property
    def offset(self) -> int:
        return self.memory_offset_low | self.memory_offset_high << 32


@define
class ExtraTensorInfo:
    mutable_data_segments_idx: U64 = 0
    fully_qualified_name: str | None = None
    location: I8 = 0
    device_type: I8 = 0
    device_index: I8 = 0


@define
class Tensor:
    scalar_type: I8 = 0
    storage_offset: I32 = 0
    sizes: tuple[I32, ...] | None = None
    dim_order: bytes | None = None
    requires_grad: B8 = False
    data_buffer_idx: U32 = 0
    allocation_info: AllocationDetails | None = None
    layout: I8 = 0
    shape_dynamism: I8 = 0
    extra_tensor_info: ExtraTensorInfo | None = None


@define
class Int:
    int_val: I64 = 0


@define
class Bool:
    bool_val: B8 = False


@define
class Double:
    double_val: F64 = 0.0


@define
class String:
    string_val: str | None = None


@define
class IntList:
    """`items` are indices of values, not numbers."""

    items: tuple[I64, ...] | None = None


@define
class DoubleList:
    items: tuple[F64, ...] | None = None


@define
class BoolList:
    items: tuple[B8, ...] | None = None


@define
class TensorList:
    """`items` are indices of values."""

    items: tuple[I32, ...] | None = None


@define
class OptionalTensorList:
    """`items` are indices of values; -1 is None."""

    items: tuple[I32, ...] | None = None


@define
class EValue:
    val: (
        Null
        | Int
        | Bool
        | Double
        | Tensor
        | String
        | IntList
        | DoubleList
        | BoolList
        | TensorList
        | OptionalTensorList
        | None
    ) = None


@define
class Operator:
    name: str | None = None
    overload: str | None = None


@define
class KernelCall:
    op_index: I32 = 0
    args: tuple[I32, ...] | None = None


@define
class DelegateCall:
    delegate_index: I32 = 0
    args: tuple[I32, ...] | None = None


@define
class MoveCall:
    move_from: I32 = 0
    move_to: I32 = 0


@define
class JumpFalseCall:
    cond_value_index: I32 = 0
    destination_instruction: I32 = 0


@define
class FreeCall:
    value_index: I32 = 0


@define
class Instruction:
    instr_args: KernelCall | DelegateCall | MoveCall | JumpFalseCall | FreeCall | None = None


@define
class Frame:
    filename: str | None = None
    lineno: I32 = 0
    name: str | None = None
    context: str | None = None


@define
class FrameList:
    items: list[Frame] | None = None


@define
class BackendDelegateDataReference:
    location: I8 = 0
    index: U32 = 0


@define
class CompileSpec:
    key: str | None = None
    value: bytes | None = None


@define
class BackendDelegate:
    id: str | None = None
    processed: BackendDelegateDataReference | None = None
    compile_specs: list[CompileSpec] | None = None


@define
class Chain:
    inputs: tuple[I32, ...] | None = None
    outputs: tuple[I32, ...] | None = None
    instructions: list[Instruction] | None = None
    stacktrace: list[FrameList] | None = None


@define
class NonConstBufferDevice:
    buffer_idx: I32 = 0
    device_type: I8 = 0
    device_index: I8 = 0


@define
class ExecutionPlan:
    """One method. `non_const_buffer_sizes[i]` is the size of memory `i`; 0 is not used."""

    name: str | None = None
    container_meta_type: ContainerMetadata | None = None
    values: list[EValue] | None = None
    inputs: tuple[I32, ...] | None = None
    outputs: tuple[I32, ...] | None = None
    chains: list[Chain] | None = None
    operators: list[Operator] | None = None
    delegates: list[BackendDelegate] | None = None
    non_const_buffer_sizes: tuple[I64, ...] | None = None
    non_const_buffer_device: list[NonConstBufferDevice] | None = None


@define
class Buffer:
    storage: Span | bytes | None = None


@define
class BackendDelegateInlineData:
    data: Span | bytes | None = None


@define
class DataSegment:
    """`offset` counts from the extended header's segment base."""

    offset: U64 = 0
    size: U64 = 0


@define
class SubsegmentOffsets:
    segment_index: U32 = 0
    offsets: tuple[U64, ...] | None = None


@define
class NamedData:
    key: str | None = None
    segment_index: U32 = 0


@define
class Program:
    """The root. Entry 0 of `constant_segment.offsets` (or of `constant_buffer`) and of
    `mutable_data_segments[0].offsets` stands for "no data"."""

    version: U32 = 0
    execution_plan: list[ExecutionPlan] | None = None
    constant_buffer: list[Buffer] | None = None
    backend_delegate_data: list[BackendDelegateInlineData] | None = None
    segments: list[DataSegment] | None = None
    constant_segment: SubsegmentOffsets | None = None
    mutable_data_segments: list[SubsegmentOffsets] | None = None
    named_data: list[NamedData] | None = None
