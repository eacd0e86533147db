"""Writes a `.pte`: its tables, then its segments, streamed, then a checksum over all of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

from attrs import evolve, frozen

from mmpack.multimethod.link.encode import encode
from mmpack.multimethod.link.file import HEADER_AT, HEADER_MAGIC, HEADER_SIZE, Extent, OpenFile
from mmpack.multimethod.link.integrity import INTEGRITY_KEY, TRAILER_SIZE, trailer
from mmpack.multimethod.link.schema import DataSegment, NamedData, Program
from mmpack.multimethod.scratch import replacing

SEGMENT_ALIGNMENT = 128
"""Bytes. ExecuTorch's default; loaders that map segments want nothing more."""


@frozen
class Later:
    """`size` bytes that are made when they are written."""

    size: int
    make: Callable[[], bytes]


@frozen
class Piece:
    """Bytes in memory, an extent of an open file, or bytes that are still to be made."""

    source: bytes | Later | tuple[OpenFile, Extent]

    @property
    def size(self) -> int:
        if isinstance(self.source, bytes):
            return len(self.source)
        return self.source.size if isinstance(self.source, Later) else self.source[1].size

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.source, bytes):
            return iter((self.source,))
        if isinstance(self.source, Later):
            return iter((self.source.make(),))
        file, extent = self.source
        return file.chunks(extent)

    def part(self, start: int, size: int) -> bytes:
        """So many of the bytes, from `start` on."""
        if isinstance(self.source, tuple):
            file, extent = self.source
            return file.read(extent.offset + start, size)
        return next(self.chunks())[start : start + size]


@frozen
class Segment:
    """A segment to be written: pieces at offsets from its start, gaps filled with zeros.

    `inside`: the segment takes no room of its own but is (index of an earlier segment, offset
    in it, size). alignment: of its start in the file, a power of two.
    """

    pieces: tuple[tuple[int, Piece], ...] = ()
    inside: tuple[int, int, int] | None = None
    alignment: int = SEGMENT_ALIGNMENT

    @property
    def size(self) -> int:
        if self.inside:
            return self.inside[2]
        return max((offset + piece.size for offset, piece in self.pieces), default=0)

    @classmethod
    def of(cls, piece: Piece | bytes, alignment: int = SEGMENT_ALIGNMENT) -> Segment:
        whole = Piece(piece) if isinstance(piece, bytes) else piece
        return cls(((0, whole),), alignment=alignment)


def write_pte(
    path: str | os.PathLike[str],
    program: Program,
    segments: Sequence[Segment],
    *,
    sealed: bool = True,
    before: Callable[[], None] = lambda: None,
    lasting: bool = True,
) -> int:
    """Writes a program and its segments; the size of the file in bytes.

    program: refers to segments by their index in `segments`; its own `segments` are ignored.
    sealed: end the file with a checksum (see `integrity.py`), one more segment and named datum.
    before: called once all is written, before it goes into place.
    lasting: wait until it is on the disk; not worth it for what can be made again.
    Raises OutputError; the output is then what it was before.
    """
    segments = list(segments)
    if sealed:
        named = [*(program.named_data or ()), NamedData(INTEGRITY_KEY, len(segments))]
        segments.append(Segment.of(bytes(TRAILER_SIZE)))
        program = evolve(program, named_data=named)
    table: list[DataSegment] = []
    end = 0
    for segment in segments:
        if segment.inside:
            offset = table[segment.inside[0]].offset + segment.inside[1]
        else:
            offset = up(end, segment.alignment)
            end = offset + segment.size
        table.append(DataSegment(offset, segment.size))
    # The length of the encoding may not depend on the checksum, so its place comes first.
    data = encode(evolve(program, segments=table or None), reserved=HEADER_SIZE)
    widest = max([segment.alignment for segment in segments], default=1)
    base = up(len(data), widest) if table else 0
    pack_header(data, base, end if table else 0)
    total = base + end if table else len(data)
    with replacing(path, total, lasting=lasting) as out:
        writer = Stream(out)
        writer.put(bytes(data))
        for place, segment in zip(table, segments, strict=True):
            for offset, piece in segment.pieces:
                writer.zeros_to(base + place.offset + offset)
                if sealed and segment is segments[-1]:
                    writer.put(trailer(writer.crc, writer.at))
                else:
                    for chunk in piece.chunks():
                        writer.put(chunk)
        writer.zeros_to(total)
        before()
    return total


def pack_header(data: bytearray, base: int, segments: int) -> None:
    """Fill in the extended header of a flatbuffer with room for it. base: where its segments begin
    in the file; segments: bytes of these."""
    sizes = (HEADER_SIZE, len(data), base, segments)
    struct.pack_into("<4sIQQQ", data, HEADER_AT, HEADER_MAGIC, *sizes)


def up(size: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not below `size`."""
    return -(-size // alignment) * alignment


class Stream:
    """Sequential writes, their CRC-32 and their number."""

    def __init__(self, out: int) -> None:
        self.out, self.crc, self.at = out, 0, 0

    def put(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self.at += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.out, view) :]

    def zeros_to(self, offset: int) -> None:
        assert offset >= self.at
        self.put(bytes(offset - self.at))
