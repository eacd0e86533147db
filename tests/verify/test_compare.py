"""How results are measured, and which sizes of dims are tried."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpack.multimethod.signature import Dim
from mmpack.multimethod.verify import compare
from mmpack.multimethod.verify.compare import combinations, difference

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("expected", "got", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.5, 0.0, 0.0, 0.0], [0.5, 0.25, 0.0, 0.0], 1.0),  # relative to the mean square's root
        ([0.0, 4.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0], 0.25),  # or to the element, if larger
        ([0.0, 0.0], [0.0, 0.0005], 0.5),  # but to no less than a thousandth
        ([INF, 1.0], [INF, 1.5], 0.5),
        ([NAN, 1.0], [NAN, 1.5], 0.5),
        ([NAN, INF], [NAN, INF], INF),  # nothing was compared
        ([-3e4, 1.0, 1.0], [-3e4, 1.5, 1.0], 0.5),  # a mask's value hides nothing beside it
        ([-3e4, 1.0], [-6e4, 1.0], 1.0),
        ([INF], [-INF], INF),
        ([NAN], [INF], INF),
        ([NAN], [0.0], INF),
        ([1.0], [NAN], INF),
        ([0.0], [INF], INF),
        ([], [], 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_difference_of_floats(
    expected: list[float], got: list[float], error: float, dtype: torch.dtype
) -> None:
    one, other = torch.tensor(expected, dtype=dtype), torch.tensor(got, dtype=dtype)
    assert difference(one, other) == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int32)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([True]), torch.tensor([False])),
    ],
)
def test_difference_of_other_kinds_is_infinite(expected: torch.Tensor, got: torch.Tensor) -> None:
    assert difference(expected, got) == INF
    assert difference(expected, expected) == 0.0


def test_small_numbers_that_are_mostly_wrong_are_not_right() -> None:
    """A softmax over many entries, each of them tiny."""
    right = torch.randn(65536, generator=torch.Generator().manual_seed(0)).softmax(0)
    wrong = right.roll(1)
    assert difference(right, right * (1 + 1e-6)) < 1e-4
    assert difference(right, wrong) > 1e-2


def dims(**given_: Dim) -> dict[str, Dim]:
    return given_


def test_combinations_are_all_of_minimum_middle_and_maximum() -> None:
    found = combinations(dims(a=Dim("a", 1, 9), b=Dim("b", 8, 8), c=Dim("c", 16, 64, 16)))
    assert len(found) == 9
    assert {s["a"] for s in found} == {1, 5, 9}
    assert {s["b"] for s in found} == {8}
    assert {s["c"] for s in found} == {16, 32, 64}
    assert combinations({}) == [{}]


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=6
    )
)
def test_combinations_are_admitted_reach_both_ends_and_are_few(
    ranges: list[tuple[int, int, int]],
) -> None:
    every = {
        f"d{n}": Dim(f"d{n}", low * step, (low + more) * step, step)
        for n, (low, more, step) in enumerate(ranges)
    }
    found = combinations(every)
    assert len(found) <= 27 + 15
    for name, dim in every.items():
        sizes = {combination[name] for combination in found}
        assert {dim.min, dim.max} <= sizes
        assert all(dim.admits(size) for size in sizes)


def test_two_dims_meet_in_one_size_where_they_can() -> None:
    found = combinations(dims(a=Dim("a", 2, 20), b=Dim("b", 8, 64, 8)))
    assert any(s["a"] == s["b"] for s in found)
    apart = combinations(dims(a=Dim("a", 2, 20), b=Dim("b", 21, 64)))
    assert len(apart) == 9


@pytest.mark.parametrize("block", [1, 7, 1 << 17])
@pytest.mark.parametrize("odd", [(), (float("inf"),), (float("nan"), -1e9)])
def test_difference_of_what_is_compared_in_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int, odd: tuple[float, ...]
) -> None:
    """Against the definition, written down with numpy for all elements at once."""
    monkeypatch.setattr(compare, "BLOCK", block)
    right = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    right.view(-1)[4 : 4 + len(odd)] = torch.tensor(odd)
    wrong = right * (1 + 1e-3 * torch.rand(3, 11, generator=torch.Generator().manual_seed(1)))
    e, g = (t.double().numpy().reshape(-1) for t in (right, wrong))
    finite = np.isfinite(e)
    e, g = e[finite], g[finite]
    scale = np.sqrt(np.mean(e[np.abs(e) < 1e4] ** 2))
    expected = np.max(np.abs(e - g) / np.maximum(np.abs(e), scale))
    assert difference(right, wrong) == pytest.approx(expected, rel=1e-12)
    wrong.view(-1)[-1] = float("nan")
    assert difference(right, wrong) == INF
