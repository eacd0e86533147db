"""Spans of bytes in a planned memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from mmpack.multimethod.link.check_calls import nbytes
from mmpack.multimethod.link.schema import Tensor


def span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a planned tensor in its memory, and the one after its last."""
    offset = tensor.allocation_info.offset if tensor.allocation_info else 0
    return offset, offset + nbytes(tensor)


class Spans:
    """The bytes that some tensors of one memory take, as spans that do not overlap: `ends` are
    (first byte, byte after the last), ascending. Tensors that only touch stay apart."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.ends: list[tuple[int, int]] = []
        for start, end in sorted(map(span, tensors)):
            if start == end:
                continue
            if not self.ends or self.ends[-1][1] <= start:
                self.ends.append((start, end))
            elif self.ends[-1][1] < end:
                self.ends[-1] = (self.ends[-1][0], end)

    def holding(self, tensor: Tensor) -> tuple[int, int] | None:
        """The last of the spans that a tensor overlaps; None if there is none."""
        start, end = span(tensor)
        place = bisect_left(self.ends, (end,)) - 1
        if start == end or place < 0 or self.ends[place][1] <= start:
            return None
        return self.ends[place]
