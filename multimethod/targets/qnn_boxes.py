"""Boxes: which elements of a tensor a part of it holds, a range of indices for each axis, and where
they come from in the tensor that this one was made of. Plain arithmetic, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

Range = tuple[int, int]
"""From the first index to the one after the last."""
Box = tuple[Range, ...]


def whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def sizes(box: Box) -> list[int]:
    """The shape of the part."""
    return [high - low for low, high in box]


def broadcast(box: Box, shape: Sequence[int]) -> Box:
    """What of a tensor of `shape` goes into a box of what it is broadcast to."""
    kept = box[len(box) - len(shape) :]
    return tuple((0, 1) if n == 1 else at for n, at in zip(shape, kept, strict=True))


def viewed(box: Box, shape: Sequence[int], before: Sequence[int]) -> Box | None:
    """What of a tensor of shape `before` goes into a box of the same elements viewed as `shape`;
    None if that is no box."""
    found: list[Range] = []
    if 0 in shape:
        return None
    for axes, axes_before in _grouped(shape, before):
        span = _span([shape[axis] for axis in axes], [box[axis] for axis in axes])
        part = _within([before[axis] for axis in axes_before], span) if span else None
        if part is None:
            return None
        found += part
    return tuple(found)


def tiling(boxes: Sequence[Box], shape: Sequence[int]) -> list[list[Range]] | None:
    """The ranges of each axis that cut a tensor into a grid, all of whose cells are among `boxes`;
    None if there are none. Boxes that hold others are left out."""
    axes: list[list[Range]] = []
    for axis, size in enumerate(shape):
        given = sorted({box[axis] for box in boxes})
        least = [at for at in given if not any(_holds(at, other) for other in given)]
        ends = [low for low, _ in least] + [size]
        if [0, *(high for _, high in least)] != ends:
            return None
        axes.append(least)
    cells = prod(len(ranges) for ranges in axes)
    held = {box for box in boxes if all(at in axes[axis] for axis, at in enumerate(box))}
    return axes if len(held) == cells > 1 else None


def _holds(at: Range, other: Range) -> bool:
    return at != other and at[0] <= other[0] and other[1] <= at[1]


def _grouped(shape: Sequence[int], before: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of as many elements, in the smallest groups of as many elements."""
    a = b = 0
    while a < len(shape) or b < len(before):
        a_end, b_end = min(a + 1, len(shape)), min(b + 1, len(before))
        while (ours := prod(shape[a:a_end])) != (theirs := prod(before[b:b_end])):
            a_end, b_end = (a_end + 1, b_end) if ours < theirs else (a_end, b_end + 1)
        yield range(a, a_end), range(b, b_end)
        a, b = a_end, b_end


def _span(shape: Sequence[int], box: Sequence[Range]) -> Range | None:
    """The elements of a box as a range of all, row by row; None if there are others between."""
    start, length, stride, cut = 0, 1, 1, False
    for size, (low, high) in zip(reversed(shape), reversed(box), strict=True):
        if cut and high - low > 1:
            return None
        cut = cut or high - low < size
        start += low * stride
        length *= high - low
        stride *= size
    return start, start + length


def _within(shape: Sequence[int], span: Range) -> list[Range] | None:
    """The box that a range of the elements, row by row, is; None if it is none."""
    low, high = span
    box: list[Range] = []
    for axis in range(len(shape)):
        stride = prod(shape[axis + 1 :])
        first, last = low // stride, (high - 1) // stride
        if first != last:
            if low % stride or high % stride:
                return None
            return [*box, (first, high // stride), *whole(shape[axis + 1 :])]
        box.append((first, first + 1))
        low, high = low - first * stride, high - first * stride
    return box
