"""Calls on a tape come back as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmpack.multimethod.compile.calls import Tape, read_calls, spread
from mmpack.multimethod.errors import OutputError

TENSORS = [
    torch.arange(12.0).reshape(3, 4).t(),
    torch.tensor([1.5, float("nan"), -float("inf")]).to(torch.bfloat16),
    torch.tensor([[True], [False]]),
    torch.tensor(7),
    torch.zeros(0, 5),
    torch.arange(4, dtype=torch.int64)[::2],
]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    with Tape(tmp_path / "tape") as tape:
        calls = [tape.write(TENSORS), tape.write([]), tape.write(TENSORS[:1])]
    first, second, third = read_calls(tape.path, calls)
    for written, read in zip(TENSORS, first, strict=True):
        assert written.dtype is read.dtype
        torch.testing.assert_close(read, written, rtol=0, atol=0, equal_nan=True)
    assert second == [] and torch.equal(third[0], TENSORS[0])


def test_equal_tensors_are_written_once(tmp_path: Path) -> None:
    with Tape(tmp_path / "tape") as tape:
        one, two = tape.write([torch.ones(100)]), tape.write([torch.ones(100)])
        tape.write([torch.ones(10, 10)])  # of another shape
    assert one == two and tape.path.stat().st_size == 2 * 400


def test_a_tape_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/tape cannot be written: No such file"):
        Tape(tmp_path / "none" / "tape")


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(0, 4, []), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (9, 2, [0, 8])],
)
def test_some_calls_from_the_first_to_the_last(count: int, most: int, chosen: list[int]) -> None:
    assert list(spread(range(count), most)) == chosen
