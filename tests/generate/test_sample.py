"""The sampler, beside transformers' own logits warpers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mmpack.multimethod.errors import CallError
from mmpack.multimethod.generate.sample import Sampler


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 60),
    temperature=st.none() | st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 80),
    top_p=st.none() | st.floats(0.01, 1),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_probabilities_are_those_of_transformers(
    seed: int,
    size: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    spread: float,
) -> None:
    if temperature is top_k is top_p is None:
        temperature = 1.0
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    expected, ids = logits[None], torch.zeros(1, 1, dtype=torch.int64)
    if temperature is not None:
        expected = TemperatureLogitsWarper(temperature)(ids, expected)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p is not None and top_p < 1:  # where transformers leaves the warper out
        expected = TopPLogitsWarper(top_p)(ids, expected)
    got = Sampler(temperature, top_k, top_p).probabilities(logits)
    torch.testing.assert_close(got, expected[0].softmax(0))


def test_equal_seeds_draw_equal_tokens() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    first, again, other = Sampler(1.0, seed=3), Sampler(1.0, seed=3), Sampler(1.0, seed=4)
    drawn = [first(logits) for _ in range(40)]
    assert drawn == [again(logits) for _ in range(40)]
    assert drawn != [other(logits) for _ in range(40)]
    assert drawn != [Sampler(1.0)(logits) for _ in range(40)]
    assert len(set(drawn)) > 5


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    sampler = Sampler(0.7, top_k=3, seed=0)
    logits = torch.tensor([1.0, 0.5, -1.0, 0.8])
    probable = sampler.probabilities(logits)
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(4000)]), minlength=4)
    assert counts[2] == 0
    torch.testing.assert_close(counts / 4000, probable, atol=0.03, rtol=0)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy(options: dict[str, float], dtype: torch.dtype) -> None:
    sampler = Sampler(**options)  # type: ignore[arg-type]
    for seed in range(20):
        logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert logits[sampler(logits)] == logits.max()
    if sampler.greedy:
        assert sampler(torch.tensor([0.0, 2.0, 2.0])) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -1.0}, "temperature: expected a number that is not negative: -1.0"),
        ({"temperature": float("nan")}, "temperature: expected a number that is not negative: nan"),
        ({"temperature": float("inf")}, "temperature: expected a number that is not negative: inf"),
        ({"top_k": 0}, "top-k: expected at least 1, got 0"),
        ({"top_p": 0.0}, "top-p: expected more than 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top-p: expected more than 0 and at most 1, got 1.1"),
        ({"seed": 1}, "seed: for drawing, and without a temperature nothing is drawn"),
        (
            {"temperature": 0.0, "top_k": 3, "seed": 1},
            "top-k and seed: for drawing, and without a temperature nothing is drawn",
        ),
    ],
)
def test_what_cannot_be(options: dict[str, float], told: str) -> None:
    with pytest.raises(CallError) as raised:
        Sampler(**options)  # type: ignore[arg-type]
    assert str(raised.value) == told
