"""XNNPACK's delegate data: where its graph and its constants are.

    byte 4   "XH00", header's length (2 bytes), then where the flatbuffer and the constants are

XNNPACK trusts much of what it finds there (`xnnpack_graph.py`), and it logs keys that it cannot
find, which kills Python if they are not UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from attrs import frozen

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.flatbuffer import decode
from mmpack.multimethod.link.schema import DelegateCall, ExecutionPlan
from mmpack.multimethod.link.xnnpack_graph import check_graph
from mmpack.multimethod.link.xnnpack_schema import Graph
from mmpack.multimethod.link.xnnpack_values import constant_room

BACKEND = "XnnpackBackend"

_HEADER = struct.Struct("<4s4sHIIIQ")
_MAGIC = b"XH00"
_MIN_FLATBUFFER = 8


@frozen
class Blob:
    """graph; constants: bytes of constants that follow it, None if there is no header, and the
    graph's constants are in the flatbuffer."""

    graph: Graph
    constants: int | None


def read_blob(file: PteFile, blob: Extent, where: str) -> Blob:
    """Reads XNNPACK's delegate data. Raises FormatError, starting with `where`."""
    head = file.read(blob.offset, min(_HEADER.size, blob.size))
    start, size, constants = 0, blob.size, None
    if len(head) < _HEADER.size:
        raise FormatError(f"{where}: {blob.size} bytes, too few for XNNPACK's header")
    if head[4:8] == _MAGIC:
        _, _, _, start, size, at, constants = _HEADER.unpack(head)
        end = max(start + size, at + constants)
        if end > blob.size:
            raise FormatError(f"{where}: its header leads to byte {end} of {blob.size}")
        if size < _MIN_FLATBUFFER or at < start + size:
            raise FormatError(f"{where}: its header has {size} bytes at {start}, constants at {at}")
    data = file.read(blob.offset + start, size)
    identifier = data[4:8]
    if identifier not in (b"XN00", b"XN01"):
        raise FormatError(f"{where}: expected XNNPACK's 'XN00' or 'XN01', got {identifier!r}")
    graph, _ = decode(data, Graph, identifier=identifier, what=where)
    return Blob(graph, constants)


def check_xnnpack(file: PteFile, blob: Extent, plan: ExecutionPlan, number: int) -> None:
    """Checks delegate `number` of a plan, whose data are at `blob`. Raises FormatError."""
    where = f"{file.path}: method {plan.name!r}: delegate {number}"
    read = read_blob(file, blob, where)
    values = [value.val for value in plan.values or ()]
    calls = [
        [values[index] for index in call.args or ()]
        for chain in plan.chains or ()
        for instruction in chain.instructions or ()
        if isinstance(call := instruction.instr_args, DelegateCall)
        and call.delegate_index == number
    ]
    try:
        check_graph(read.graph, _rooms(file, read), calls)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None


def _rooms(file: PteFile, blob: Blob) -> Sequence[int]:
    """Bytes by index of a constant; all of them are there."""
    if blob.constants is None:
        return [constant_room(buffer.storage) for buffer in blob.graph.constant_buffer or ()]
    rooms = [0]
    for number, entry in enumerate((blob.graph.constant_data or [])[1:], 1):
        if entry.named_key is None:
            end = entry.offset + entry.size
            if end > blob.constants:
                raise FormatError(f"constant {number} ends at byte {end} of {blob.constants}")
        elif (room := file.size_of(entry.named_key)) is None:
            raise FormatError(f"constant {number}: no named data {entry.named_key!r}")
        elif room < entry.size:
            raise FormatError(
                f"constant {number} needs {entry.size} bytes of named data "
                f"{entry.named_key!r}, which has {room}"
            )
        rooms.append(entry.size)
    return rooms


def keys_of(file: PteFile, blob: Extent) -> set[str]:
    """The keys of the named data that XNNPACK's delegate data refer to."""
    graph = read_blob(file, blob, str(file.path)).graph
    return {entry.named_key for entry in graph.constant_data or () if entry.named_key}
