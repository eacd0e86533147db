"""Every blob of every input once: equal bytes are found whoever brings them and stored once.

Blobs are compared by their size and some of their bytes first, which reads next to nothing of
most; where that cannot tell several apart, by CRC-32; and then byte by byte, so that equal always
means equal. Nothing is held in memory but one chunk of each.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from attrs import define, field

from mmpack.multimethod.link.write import Piece

SAMPLE = 4096
"""Bytes of a blob's beginning, middle and end that are looked at before all of it is."""


@define
class Blobs:
    """`pieces[i]` are the bytes of blob `i`."""

    pieces: list[Piece] = field(factory=list)
    _known: dict[tuple[int, int], list[int]] = field(factory=dict)
    _crcs: dict[int, int] = field(factory=dict)

    def add(self, piece: Piece) -> int:
        """The number of the blob with these bytes, which may have been here before."""
        alike = self._known.setdefault((piece.size, _look(piece)), [])
        likely = alike
        if len(alike) > 1:  # or many that differ elsewhere would be read for each other
            crc = crc_of(piece)
            likely = [number for number in alike if self.crc(number) == crc]
        for number in likely:
            if same_bytes(self.pieces[number], piece):
                return number
        self.pieces.append(piece)
        alike.append(len(self.pieces) - 1)
        return alike[-1]

    def crc(self, number: int) -> int:
        """The CRC-32 of a blob."""
        if number not in self._crcs:
            self._crcs[number] = crc_of(self.pieces[number])
        return self._crcs[number]


def crc_of(piece: Piece) -> int:
    """The CRC-32 of all of a piece."""
    crc = 0
    for chunk in piece.chunks():
        crc = zlib.crc32(chunk, crc)
    return crc


def _look(piece: Piece) -> int:
    """Equal for equal pieces, and for hardly any others of one size."""
    if piece.size <= SAMPLE:
        return crc_of(piece)
    crc = 0
    for start in (0, (piece.size - SAMPLE) // 2, piece.size - SAMPLE):
        crc = zlib.crc32(piece.part(start, SAMPLE), crc)
    return crc


def same_bytes(one: Piece, other: Piece) -> bool:
    """Whether two pieces of one size hold the same bytes."""
    if one.source == other.source:
        return True
    if one.size != other.size:
        return False
    return all(a == b for a, b in _in_step(one.chunks(), other.chunks()))


def _in_step(one: Iterable[bytes], other: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Two streams of equal length, cut at the same places."""
    left = right = b""
    a, b = iter(one), iter(other)
    while True:
        left = left or next(a, b"")
        right = right or next(b, b"")
        size = min(len(left), len(right))
        if not size:
            return
        yield left[:size], right[:size]
        left, right = left[size:], right[size:]
