"""Reads and checks a flatbuffer by the classes that describe it.

    program, unknown = decode(memoryview(data), Program)

Nothing in the buffer is trusted: every offset, vtable, length, string and union tag is checked
before it is followed, so a damaged file ends in a FormatError that names the table, the field
and the byte. The work is bounded too, as tables of a malicious file may overlap: no more tables
than the runtime itself would accept, and no more vector bytes than a few times the buffer.
The schemas have no recursive table, so the depth of the classes bounds the depth of the calls.

`encode.py` is the way back.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache
from typing import Any, NoReturn, TypeVar

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.fields import Field, fields_of
from mmpack.multimethod.link.schema import Skipped, Span

T = TypeVar("T")

MAX_TABLES = 1_000_000
"""ExecuTorch's own verifier stops at this many tables."""

_SKIPPED = Skipped()
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")


def decode(
    buffer: memoryview | bytes, root: type[T], *, identifier: bytes = b"ET12", what: str = "program"
) -> tuple[T, tuple[str, ...]]:
    """The root table of a buffer, and the names of slots that our classes do not know.

    The buffer starts with the root's offset (4 bytes) and the identifier (4 bytes). Slots that
    a newer writer added are read over; they are named ("Tensor.slot 10") so that whoever would
    write the table again can refuse to drop them. Raises FormatError.
    """
    if len(buffer) < 8:
        raise FormatError(f"{what}: {len(buffer)} bytes, too few for a flatbuffer")
    if bytes(buffer[4:8]) != identifier:
        raise FormatError(
            f"{what}: identifier at byte 4: expected {identifier!r}, got {bytes(buffer[4:8])!r}"
        )
    reader = _Reader(buffer, what)
    result: T = reader.table(root, reader.follow(0, _U32.unpack_from(buffer, 0)[0], "root"))
    return result, tuple(sorted(reader.unknown))


@cache
def _numbers(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


class _Layout:
    """How the tables of one class that share one vtable are laid out.

    `unpack` reads the whole table at once (padding skipped); `defaults` are the constructor's
    arguments, of which `numbers` (argument, place in the unpacked tuple) and `children`
    (argument, place, offset of the field, Field, place of the union's tag) are filled in.
    """

    __slots__ = ("children", "defaults", "mask", "numbers", "residue", "size", "unknown", "unpack")

    def __init__(self, table: type, vtable: tuple[int, ...], size: int, fail: Any) -> None:
        self.size = size
        known = sum(field.slots for field in fields_of(table))
        unknown = (slot for slot in range(known, len(vtable)) if vtable[slot])
        self.unknown = [f"{table.__name__}.slot {slot}" for slot in unknown]
        self.defaults: list[Any] = []
        present: list[tuple[int, str, int, tuple[int, str]]] = []  # offset, code, size, who
        for number, field in enumerate(fields_of(table)):
            self.defaults.append(field.default)
            for part in range(field.slots):
                slot = field.slot + part
                offset = vtable[slot] if slot < len(vtable) else 0
                if offset:
                    tag = field.kind == "union" and part == 0
                    code, width = ("B", 1) if tag else ("I", 4)
                    if field.kind == "number":
                        code, width = field.code, field.size
                    present.append((offset, code, width, (number, "tag" if tag else field.kind)))
        present.sort()
        layout, end, self.mask, self.residue = "<", 0, 3, 0
        places: dict[tuple[int, str], int] = {}
        offsets: dict[tuple[int, str], int] = {}
        for place, (offset, code, width, who) in enumerate(present):
            name = fields_of(table)[who[0]].name
            if offset < max(end, 4) or offset + width > size:
                fail(f"field {name!r} at {offset}..{offset + width} overlaps or leaves its table")
            if width == 8 and self.mask == 3:
                self.mask, self.residue = 7, offset & 7
            if (offset & 7) != self.residue if width == 8 else offset % width:
                fail(f"field {name!r} is not aligned to {width} bytes")
            layout += f"{offset - end}x{code}"
            end = offset + width
            places[who], offsets[who] = place, offset
        self.unpack = struct.Struct(layout).unpack_from
        self.numbers = [(n, p) for (n, kind), p in places.items() if kind == "number"]
        self.children: list[tuple[int, int, int, Field, int]] = []
        for number, field in enumerate(fields_of(table)):
            who = (number, field.kind)
            tag_place = places.get((number, "tag"), -1)
            if field.kind == "union" and (tag_place < 0) != (who not in places):
                fail(f"union {field.name!r} has a tag without a value, or the reverse")
            if field.kind != "number" and who in places:
                self.children.append((number, places[who], offsets[who], field, tag_place))


@lru_cache(maxsize=4096)
def _layout(table: type, vtable: tuple[int, ...], size: int) -> _Layout:
    """Kept between buffers: the delegates of a program have the same few layouts, each its own."""

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    return _Layout(table, vtable, size, fail)


class _Reader:
    def __init__(self, buffer: memoryview | bytes, what: str) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.what = what
        self.unknown: set[str] = set()
        self.tables_left = MAX_TABLES
        self.bytes_left = 4 * self.size + (1 << 20)
        self.layouts: dict[tuple[type, int], _Layout] = {}
        self.strings: dict[int, str] = {}
        self.readers = {
            "string": self.string,
            "bytes": self.bytes_,
            "span": self.span,
            "numbers": self.numbers,
            "tables": self.tables,
            "table": self.child,
            "skipped": lambda *_: _SKIPPED,
        }

    def fail(self, place: int, message: str) -> NoReturn:
        raise FormatError(f"{self.what}: byte {place}: {message}")

    def follow(self, place: int, offset: int, name: str) -> int:
        target = place + offset
        if not offset or target & 3 or target + 4 > self.size:
            self.fail(place, f"{name}: offset {offset} leads outside of the buffer, or askew")
        return target

    def layout(self, table: type, place: int, vtable: int) -> _Layout:
        name = table.__name__

        def fail(message: str) -> NoReturn:
            self.fail(place, f"table {name}: {message}")

        if vtable < 0 or vtable & 1 or vtable + 4 > self.size:
            fail(f"its vtable at {vtable} is outside of the {self.size} bytes, or askew")
        length, size = struct.unpack_from("<HH", self.buffer, vtable)
        if length < 4 or length & 1 or vtable + length > self.size or size < 4:
            fail(f"its vtable at {vtable} has length {length}, table size {size}")
        slots = struct.unpack_from(f"<{length // 2 - 2}H", self.buffer, vtable + 4)
        try:
            made = _layout(table, slots, size)
        except ValueError as error:
            fail(str(error))
        self.unknown.update(made.unknown)
        self.layouts[table, vtable] = made
        return made

    def table(self, table: type, place: int) -> Any:
        vtable = place - _I32.unpack_from(self.buffer, place)[0]
        layout = self.layouts.get((table, vtable)) or self.layout(table, place, vtable)
        if place + layout.size > self.size or (place + layout.residue) & layout.mask:
            self.fail(place, f"table {table.__name__} of {layout.size} bytes is outside, or askew")
        self.tables_left -= 1
        if self.tables_left < 0:
            self.fail(place, f"more than {MAX_TABLES} tables, which the runtime refuses too")
        read = layout.unpack(self.buffer, place)
        arguments = layout.defaults.copy()
        for argument, index in layout.numbers:
            arguments[argument] = read[index]
        for argument, index, offset, field, tag in layout.children:
            at = place + offset
            target = at + read[index]
            if target & 3 or target + 4 > self.size or target == at:
                self.follow(at, read[index], f"{table.__name__}.{field.name}")
            if tag < 0:
                arguments[argument] = self.readers[field.kind](target, field)
            elif 0 < read[tag] <= len(field.classes):
                arguments[argument] = self.table(field.classes[read[tag] - 1], target)
            elif field.open and read[tag]:
                arguments[argument] = _SKIPPED
            else:
                self.fail(at, f"{table.__name__}.{field.name}: unknown union tag {read[tag]}")
        return table(*arguments)

    def child(self, place: int, field: Field) -> Any:
        return self.table(field.classes[0], place)

    def vector(self, place: int, field: Field) -> int:
        """The number of elements, all of them inside the buffer and aligned."""
        count: int = _U32.unpack_from(self.buffer, place)[0]
        if count * field.size > self.size - place - 4:
            self.fail(place, f"{field.name}: {count} elements of {field.size} bytes end outside")
        if (place + 4) % field.size:
            self.fail(place, f"{field.name}: elements are not aligned to {field.size} bytes")
        return count

    def spend(self, place: int, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            self.fail(place, "vectors overlap so often that this can only be made to hurt")

    def numbers(self, place: int, field: Field) -> tuple[Any, ...]:
        count = self.vector(place, field)
        self.spend(place, count * field.size)
        if count > 64:  # not worth a cached Struct
            return struct.unpack_from(f"<{count}{field.code}", self.buffer, place + 4)
        return _numbers(field.code, count).unpack_from(self.buffer, place + 4)

    def bytes_(self, place: int, field: Field) -> bytes:
        count = self.vector(place, field)
        self.spend(place, count)
        return bytes(self.buffer[place + 4 : place + 4 + count])

    def span(self, place: int, field: Field) -> Span:
        return Span(place + 4, self.vector(place, field))

    def string(self, place: int, field: Field) -> str:
        met = self.strings.get(place)  # writers share equal strings
        if met is not None:
            return met
        end = place + 4 + self.vector(place, field)
        self.spend(place, end - place)
        if end >= self.size or self.buffer[end]:
            self.fail(place, f"{field.name}: string has no terminating zero")
        try:
            text = str(self.buffer[place + 4 : end], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.what}: byte {place}: {field.name}: not UTF-8") from error
        self.strings[place] = text
        return text

    def tables(self, place: int, field: Field) -> list[Any]:
        count = self.vector(place, field)
        self.spend(place, count * 4)
        made = []
        at = place + 4
        for offset in struct.unpack_from(f"<{count}I", self.buffer, at):
            target = at + offset
            if target & 3 or target + 4 > self.size or target == at:
                self.follow(at, offset, f"an element of {field.name}")
            made.append(self.table(field.classes[0], target))
            at += 4
        return made
