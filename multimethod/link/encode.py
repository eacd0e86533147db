"""Writes records as a flatbuffer: the way back from `flatbuffer.py`.

Parents come before their children, so everything is appended once and only offsets are filled
in later. Equal records give equal bytes. Fields at their default are left out, as flatbuffer
writers do, and equal vtables are written once; nothing else is shared.
"""

from __future__ import annotations

import math
import struct
from functools import cache
from operator import attrgetter
from typing import Any

from attrs import frozen

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.fields import Field, fields_of
from mmpack.multimethod.link.flatbuffer import MAX_TABLES
from mmpack.multimethod.link.schema import Span

INLINE_ALIGNMENT = 16
"""Of [ubyte] data that the runtime hands to kernels and delegates, in bytes."""


def encode(root: object, *, identifier: bytes = b"ET12", reserved: int = 0) -> bytearray:
    """A flatbuffer of the root table, with `reserved` zero bytes after the identifier.

    Every alignment holds relative to the first byte. Raises LinkError if it would pass the 2 GiB
    that a flatbuffer may have, or the number of tables that the runtime accepts; ValueError for
    a Span (its bytes are in another file).
    """
    writer = _Writer(identifier, reserved)
    struct.pack_into("<I", writer.data, 0, writer.table(root))
    writer.pad(8)
    if len(writer.data) >= 1 << 31:
        raise LinkError(f"the program's tables take {len(writer.data)} bytes; 2 GiB is the most")
    if writer.tables > MAX_TABLES:
        raise LinkError(
            f"the program has {writer.tables} tables; the runtime loads {MAX_TABLES} at most"
        )
    return writer.data


@frozen
class _Shape:
    """A table whose fields in `present` are not at their default: its vtable, its size, how to
    pack it, which field each packed value is (-1: a union's tag), and where the others point
    from (index of the field, offset in the table)."""

    vtable: bytes
    align: int
    packer: struct.Struct
    order: tuple[tuple[int, bool], ...]
    children: tuple[tuple[int, int], ...]


@cache
def _getter(table: type) -> Any:
    names = [f.name for f in fields_of(table)]
    if not names:
        return lambda _: ()
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda record: (get(record),)


@cache
def _shape(table: type, present: tuple[bool, ...]) -> _Shape:
    fields = fields_of(table)
    parts: list[tuple[int, str, int, int, bool]] = []  # width, code, slot, field, is a tag
    for number, (field, there) in enumerate(zip(fields, present, strict=True)):
        if not there:
            continue
        if field.kind == "number":
            parts.append((field.size, field.code, field.slot, number, False))
        else:
            if field.kind == "union":
                parts.append((1, "B", field.slot, number, True))
            parts.append((4, "I", field.slot + field.slots - 1, number, False))
    parts.sort(key=lambda part: (-part[0], part[2]))
    offsets = [0] * max((part[2] + 1 for part in parts), default=0)
    # The table's own offset takes the first four bytes, so eight-byte fields start at 8 - 4.
    align = parts[0][0] if parts and parts[0][0] > 4 else 4
    layout, end = "<i", 4
    order, children = [], []
    for width, code, slot, number, tag in parts:
        offsets[slot] = end
        layout += code
        order.append((number, tag))
        if fields[number].kind != "number" and not tag:
            children.append((number, end))
        end += width
    vtable = struct.pack(f"<{2 + len(offsets)}H", 4 + 2 * len(offsets), end, *offsets)
    return _Shape(vtable, align, struct.Struct(layout), tuple(order), tuple(children))


def _is_default(field: Field, value: Any) -> bool:
    if value is None:
        return True
    if field.kind != "number" or value != field.default:
        return False
    return field.code != "d" or math.copysign(1.0, value) > 0  # -0.0 is not the default


class _Writer:
    def __init__(self, identifier: bytes, reserved: int) -> None:
        self.data = bytearray(4) + identifier + bytes(reserved)
        self.vtables: dict[bytes, int] = {}
        self.tables = 0

    def pad(self, align: int, ahead: int = 0) -> None:
        """Zeros, until what starts `ahead` bytes from here is aligned."""
        self.data += bytes(-(len(self.data) + ahead) % align)

    def table(self, record: Any) -> int:
        self.tables += 1
        kind: Any = type(record)
        values = _getter(kind)(record)
        fields = fields_of(kind)
        present = tuple(not _is_default(f, v) for f, v in zip(fields, values, strict=True))
        shape = _shape(kind, present)
        vtable = self.vtables.get(shape.vtable)
        if vtable is None:
            self.pad(2)
            vtable = self.vtables[shape.vtable] = len(self.data)
            self.data += shape.vtable
        self.pad(shape.align, 4)
        place = len(self.data)
        inline = []
        for number, tag in shape.order:
            if tag:
                inline.append(fields[number].classes.index(type(values[number])) + 1)
            else:
                inline.append(values[number] if fields[number].kind == "number" else 0)
        self.data += shape.packer.pack(place - vtable, *inline)
        for number, offset in shape.children:
            self.point(place + offset, self.child(fields[number], values[number]))
        return place

    def point(self, at: int, target: int) -> None:
        struct.pack_into("<I", self.data, at, target - at)

    def child(self, field: Field, value: Any) -> int:
        """Writes what a field points to; where it is."""
        if field.kind in ("table", "union"):
            return self.table(value)
        if field.kind == "tables":
            self.pad(4)
            place = len(self.data)
            self.data += struct.pack("<I", len(value)) + bytes(4 * len(value))
            for number, element in enumerate(value):
                self.point(place + 4 + 4 * number, self.table(element))
            return place
        if field.kind == "numbers":
            self.pad(max(field.size, 4), 4)
            place = len(self.data)
            self.data += struct.pack(f"<I{len(value)}{field.code}", len(value), *value)
            return place
        if isinstance(value, Span):
            raise ValueError(f"{field.name}: {value} is in a file, not in memory")
        text = value.encode() if field.kind == "string" else value
        self.pad(INLINE_ALIGNMENT if field.kind == "span" else 4, 4)
        place = len(self.data)
        self.data += struct.pack("<I", len(text)) + text
        if field.kind == "string":
            self.data += b"\0"
        return place
