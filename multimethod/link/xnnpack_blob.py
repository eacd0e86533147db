"""What XNNPACK's delegate data refer to: checked, and counted.

XNNPACK verifies the structure of its flatbuffer itself, but it trusts that a weight is as large
as the tensor that uses it, and it logs keys that it cannot find, which kills Python if they are
not UTF-8. The graph's nodes are left to XNNPACK.

    byte 4   "XH00", header's length (2 bytes), then where the flatbuffer and the constants are
"""

from __future__ import annotations

import math
import struct

from attrs import define

from mmpack.multimethod.errors import FormatError

from .file import Extent, PteFile
from .flatbuffer import decode
from .schema import I16, U32, U64, Skipped

BACKEND = "XnnpackBackend"

_HEADER = struct.Struct("<4s4sHIIIQ")
_MAGIC = b"XH00"
_BITS = {
    1: 32,
    2: 16,
    3: 8,
    4: 8,
    5: 32,
    6: 8,
    7: 32,
    8: 4,
    9: 8,
    10: 4,
    11: 8,
    12: 32,
    13: 32,
    14: 16,
}
"""Bits per element, by XNNDatatype."""


@define
class TensorValue:
    datatype: I16 = 0
    num_dims: U32 = 0
    dims: tuple[U32, ...] | None = None
    constant_buffer_idx: U32 = 0


@define
class QuantizedTensorValue:
    tensor_value: TensorValue | None = None


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
    xnodes: Skipped | None = None
    xvalues: list[XValue] | None = None
    num_externs: U32 = 0
    input_ids: tuple[U32, ...] | None = None
    output_ids: tuple[U32, ...] | None = None
    constant_buffer: Skipped | None = None
    mem_buffer_sizes: Skipped | None = None
    constant_data: list[ConstantDataOffset] | None = None


def read_graph(file: PteFile, blob: Extent, where: str) -> tuple[Graph, int]:
    """The graph of XNNPACK's delegate data, and how many bytes of constants follow it."""
    head = file.read(blob.offset, min(_HEADER.size, blob.size))
    start, size, constants = 0, blob.size, 0
    if len(head) == _HEADER.size and head[4:8] == _MAGIC:
        _, _, _, start, size, at, constants = _HEADER.unpack(head)
        if start + size > blob.size or at + constants > blob.size:
            end = max(start + size, at + constants)
            raise FormatError(f"{where}: its header leads to byte {end} of {blob.size}")
    data = file.read(blob.offset + start, size)
    identifier = data[4:8]
    if identifier[:2] != b"XN":
        raise FormatError(f"{where}: expected XNNPACK's 'XN00' or 'XN01', got {identifier!r}")
    graph, _ = decode(data, Graph, identifier=identifier, what=where)
    return graph, constants


def check_xnnpack(file: PteFile, blob: Extent, where: str) -> None:
    """Raises FormatError, starting with `where`, for a weight that is missing or too small."""
    graph, constants = read_graph(file, blob, where)
    named = file.named
    entries = graph.constant_data or []
    for number, entry in enumerate(entries):
        if not number:
            continue  # it stands for "no data"
        if entry.named_key is None:
            end = entry.offset + entry.size
            if end > constants:
                raise FormatError(f"{where}: constant {number} ends at byte {end} of {constants}")
        elif entry.named_key not in named:
            raise FormatError(f"{where}: constant {number}: no named data {entry.named_key!r}")
        elif file.segments[named[entry.named_key]].size < entry.size:
            room = file.segments[named[entry.named_key]].size
            raise FormatError(
                f"{where}: constant {number} needs {entry.size} bytes of named data "
                f"{entry.named_key!r}, which has {room}"
            )
    if graph.constant_buffer is not None and not entries:
        return  # an old graph, with its constants in the flatbuffer
    for number, value in enumerate(graph.xvalues or ()):
        tensor = value.xvalue_union
        if isinstance(tensor, QuantizedTensorValue):
            tensor = tensor.tensor_value
        if tensor is None:
            raise FormatError(f"{where}: value {number} is missing")
        index = tensor.constant_buffer_idx
        if not index:
            continue
        if index >= len(entries):
            raise FormatError(f"{where}: constant {index} does not exist, there are {len(entries)}")
        if len(tensor.dims or ()) < tensor.num_dims or tensor.datatype not in _BITS:
            raise FormatError(
                f"{where}: value {number}: type {tensor.datatype}, dims {tensor.dims}"
            )
        dims = (tensor.dims or ())[: tensor.num_dims]
        needed = math.prod(dims) * _BITS[tensor.datatype] // 8
        if needed > entries[index].size:
            raise FormatError(
                f"{where}: value {number} needs {needed} bytes of constant {index}, which has "
                f"{entries[index].size}"
            )


def keys_of(file: PteFile, blob: Extent) -> set[str]:
    """The keys of the named data that XNNPACK's delegate data refer to."""
    graph, _ = read_graph(file, blob, str(file.path))
    return {entry.named_key for entry in graph.constant_data or () if entry.named_key}
