"""Damages XNNPACK delegates: their bytes, or one field of a graph that is written anew."""

from __future__ import annotations

import copy
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from mmpack.multimethod.link.encode import encode
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.link.fields import Field, fields_of
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.flatbuffer import decode
from mmpack.multimethod.link.schema import DataLocation
from mmpack.multimethod.link.write import Piece, Segment, write_pte
from mmpack.multimethod.link.xnnpack_blob import BACKEND
from mmpack.multimethod.link.xnnpack_schema import Graph

from .mutate import INTERESTING

HEADER = struct.Struct("<4s4sHIIIQ")
FLOATS = (0x3F800000, 0xBF800000, 0x7FC00000, 0x7F800000)
"""1, -1, NaN and infinity."""


class Delegates:
    """The XNNPACK delegates of a program, whose data are each in a segment of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.extents: list[Extent] = []
        self.graphs: list[tuple[int, Graph, bytes]] = []  # segment, graph, constants
        with PteFile.open(path) as file:
            for plan in file.plans:
                extents = list(delegate_extents(file, plan))
                for delegate, extent in zip(plan.delegates or (), extents, strict=True):
                    if delegate.id != BACKEND:
                        continue
                    assert delegate.processed is not None
                    assert delegate.processed.location == DataLocation.SEGMENT
                    blob = file.read(extent.offset, extent.size)
                    _, _, _, start, size, at, constants = HEADER.unpack_from(blob)
                    graph, _ = decode(
                        blob[start : start + size], Graph, identifier=blob[start + 4 : start + 8]
                    )
                    kept = blob[at : at + constants]
                    self.graphs.append((delegate.processed.index, graph, kept))
                    self.extents += [
                        Extent(extent.offset, HEADER.size),
                        Extent(extent.offset + start, size),
                    ]

    def damaged(self, path: Path, seed: int) -> None:
        """Writes a copy with some damage."""
        rng = random.Random(f"{self.path.name} {seed}")
        if rng.random() < 0.5:
            path.write_bytes(self._bytes(rng))
        else:
            self._field(rng, path)

    def _bytes(self, rng: random.Random) -> bytes:
        out = bytearray(self.data)
        for _ in range(rng.choice((1, 1, 1, 2))):
            # The header is 30 bytes of a few hundred.
            header = rng.random() < 0.03
            start, size = attrs.astuple(
                rng.choice([e for e in self.extents if (e.size == HEADER.size) == header])
            )
            at = start + rng.randrange(size - 3)
            how = rng.choice(("u32", "u32", "u32", "step", "swap", "byte", "small", "bit"))
            if how in ("u32", "step", "swap"):
                at &= ~3
                old = int.from_bytes(out[at : at + 4], "little")
                new = old + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8)) if how == "step" else _u32(rng)
                if how == "swap":
                    other = start + rng.randrange(size - 3) & ~3
                    new = int.from_bytes(out[other : other + 4], "little")
                    out[other : other + 4] = old.to_bytes(4, "little")
                out[at : at + 4] = (new % 2**32).to_bytes(4, "little")
            elif how == "bit":
                out[at] ^= 1 << rng.randrange(8)
            else:
                out[at] = rng.randrange(256 if how == "byte" else 50)
        return bytes(out)

    def _field(self, rng: random.Random, path: Path) -> None:
        def damage(graph: Graph) -> None:
            for _ in range(rng.choice((1, 1, 1, 2))):
                change(rng, graph)

        self.rewritten(path, rng.randrange(len(self.graphs)), damage)

    def rewritten(
        self, path: Path, number: int, damage: Callable[[Graph], object], *, sealed: bool = False
    ) -> None:
        """Writes a copy in which a graph, damaged, is written anew; `sealed` with a checksum."""
        segment, graph, constants = self.graphs[number]
        graph = copy.deepcopy(graph)
        damage(graph)
        flatbuffer = encode(graph, identifier=b"XN01")
        at = -(-(HEADER.size + 2 + len(flatbuffer)) // 16) * 16
        head = HEADER.pack(b"", b"XH00", HEADER.size, 32, len(flatbuffer), at, len(constants))
        blob = (head.ljust(32, b"\0") + flatbuffer).ljust(at, b"\0") + constants
        with PteFile.open(self.path) as file:
            segments = [Segment.of(Piece((file, extent))) for extent in file.segments]
            segments[segment] = Segment.of(blob)
            write_pte(path, file.program, segments, sealed=sealed)


def change(rng: random.Random, graph: Graph) -> None:
    """Changes one field of one table, a value's or a node's as likely as not."""
    part = rng.choice((graph.xnodes or [], graph.xnodes or [], graph.xvalues or [], [graph]))
    records = list(_records(rng.choice(part))) if part else [graph]
    record = rng.choice(records)
    fields = [f for f in fields_of(type(record)) if f.kind != "skipped"]
    if not fields:
        return
    field = rng.choice(fields)
    setattr(record, field.name, _changed(rng, field, getattr(record, field.name)))


def _records(record: Any) -> Iterator[Any]:
    yield record
    if isinstance(record, Graph):
        yield from record.constant_data or ()
        return
    for field in fields_of(type(record)):
        value = getattr(record, field.name)
        if field.kind in ("union", "table") and value is not None:
            yield from _records(value)


def _changed(rng: random.Random, field: Field, value: Any) -> Any:
    if field.kind == "number":
        return _number(rng, field.code, value)
    if field.kind == "numbers":
        items = list(value or ())
        how = rng.choice(("set", "set", "set", "drop", "add", "none", "swap"))
        if how == "none":
            return None
        if how == "add" or not items:
            items.insert(rng.randrange(len(items) + 1), _number(rng, field.code, 1))
        elif how == "drop":
            items.pop(rng.randrange(len(items)))
        elif how == "set":
            place = rng.randrange(len(items))
            items[place] = _number(rng, field.code, items[place])
        else:
            rng.shuffle(items)
        return tuple(items)
    if field.kind == "tables":
        items = list(value or ())
        if items:
            one, other = rng.randrange(len(items)), rng.randrange(len(items))
            how = rng.choice(("drop", "twice", "swap"))
            if how == "drop":
                items.pop(one)
            elif how == "twice":
                items.insert(other, copy.deepcopy(items[one]))
            else:
                items[one], items[other] = items[other], items[one]
        return items
    if field.kind == "union":
        # The same fields under another tag, or another table with what fits of them.
        there = _kinds(type(value)) if value is not None else set()
        alike = [c for c in field.classes if there <= _kinds(c)]
        kind = rng.choice((rng.choice(alike), rng.choice(field.classes)))
        kept = {name: getattr(value, name) for name, _ in _kinds(kind) & there}
        return kind(**kept)
    if field.kind == "string":
        return rng.choice((None, "", "x", value))
    return None


def _kinds(table: type) -> set[tuple[str, str]]:
    return {(field.name, field.kind) for field in fields_of(table)}


def _number(rng: random.Random, code: str, value: Any) -> Any:
    if code == "f":
        return struct.unpack("<f", _u32(rng).to_bytes(4, "little"))[0]
    width = struct.calcsize("<" + code)
    new = rng.choice((_u32(rng), rng.randrange(16), value + rng.choice((-2, -1, 1, 2)), value * 2))
    raw = (int(new) % (1 << 8 * width)).to_bytes(width, "little")
    return struct.unpack("<" + code, raw)[0]


def _u32(rng: random.Random) -> int:
    return rng.choice(
        (rng.choice(INTERESTING), rng.randrange(64), rng.choice(FLOATS), rng.randrange(2**32))
    )
