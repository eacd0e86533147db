"""Where the elements of a part come from, held against what numpy moves."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from mmpack.multimethod.targets.qnn_boxes import Box, broadcast, sizes, tiling, viewed, whole

COUNTS = (1, 6, 12, 24, 36)


@st.composite
def shapes(draw: st.DrawFn, count: int) -> list[int]:
    """A shape of so many elements, with a few axes of 1."""
    shape: list[int] = []
    while count > 1:
        shape.append(draw(st.sampled_from([n for n in range(2, count + 1) if count % n == 0])))
        count //= shape[-1]
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return shape


@st.composite
def boxes(draw: st.DrawFn, shape: list[int]) -> Box:
    box = []
    for size in shape:
        low = draw(st.integers(0, size - 1))
        box.append((low, draw(st.integers(low + 1, size))))
    return tuple(box)


def part(of: np.ndarray, box: Box) -> np.ndarray:
    return of[tuple(slice(*at) for at in box)]


@given(st.data())
def test_a_part_of_a_view_is_that_part_viewed(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from(COUNTS))
    shape, before = data.draw(shapes(count)), data.draw(shapes(count))
    box = data.draw(boxes(shape))
    wanted = part(np.arange(count).reshape(shape), box)
    found = viewed(box, shape, before)
    if found is not None:
        got = part(np.arange(count).reshape(before), found)
        assert np.array_equal(got.reshape(sizes(box)), wanted)
        return
    assume(before)  # then there is indeed no box with just these elements
    places = np.argwhere(np.isin(np.arange(count).reshape(before), wanted))
    assert prod(places.max(0) + 1 - places.min(0)) != len(places)


@given(st.data())
def test_a_part_of_what_is_broadcast(data: st.DataObject) -> None:
    shape = data.draw(shapes(24))
    ones = [1 if data.draw(st.booleans()) else size for size in shape]
    ones = ones[data.draw(st.integers(0, len(ones))) :]
    box = data.draw(boxes(shape))
    x = np.arange(prod(ones)).reshape(ones)
    got = np.broadcast_to(part(x, broadcast(box, ones)), sizes(box))
    assert np.array_equal(got, part(np.broadcast_to(x, shape), box))


def test_a_grid_of_boxes_is_found_whatever_else_there_is() -> None:
    every = whole((4, 6))
    halves = [((0, 4), (0, 3)), ((0, 4), (3, 6))]
    assert tiling(halves, (4, 6)) == [[(0, 4)], [(0, 3), (3, 6)]]
    assert tiling([every, *halves], (4, 6)) == [[(0, 4)], [(0, 3), (3, 6)]]
    cells = [((row, row + 2), column) for row in (0, 2) for column in ((0, 3), (3, 6))]
    assert tiling(cells, (4, 6)) == [[(0, 2), (2, 4)], [(0, 3), (3, 6)]]
    for missing in ([every], halves[:1], cells[1:], [((0, 4), (0, 4)), ((0, 4), (3, 6))], []):
        assert tiling(missing, (4, 6)) is None
