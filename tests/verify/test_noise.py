"""The measure of quantization noise, and the calls by which it is judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mmpack.multimethod.compile.calls import Examples, Tape, spread
from mmpack.multimethod.signature import ValueSpec
from mmpack.multimethod.verify.noise import Noise, resized

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("expected", "got", "decibels"),
    [
        ([3.0, 4.0], [3.0, 4.5], 20.0),  # 25 of signal, 0.25 of noise
        ([1.0, 0.0], [1.0, 1.0], 0.0),
        ([1.0, 2.0], [1.0, 2.0], INF),
        ([0.0, 0.0], [0.0, 1e-4], 10 * math.log10(2e-6 / 1e-8)),  # silence is as loud as 0.001
        ([-1e9, 3.0, 4.0], [-1e9, 3.0, 4.5], 20.0),  # a mask's value is no signal
        ([-1e9, 3.0], [-1e8, 3.0], -INF),
        ([-INF, 3.0, 4.0], [-INF, 3.0, 4.5], 20.0),
        ([-INF, 3.0], [0.0, 3.0], -INF),
        ([3.0, 4.0], [3.0, NAN], -INF),
        ([3.0, 4.0], [3.0, INF], -INF),
    ],
)
def test_ratio_of_signal_to_noise(expected: list[float], got: list[float], decibels: float) -> None:
    noise = Noise()
    noise.add(torch.tensor(expected), torch.tensor(got))
    assert noise.sqnr == pytest.approx(decibels)


def test_it_is_taken_over_all_calls_together() -> None:
    noise = Noise()
    noise.add(torch.tensor([3.0]), torch.tensor([3.0]))
    noise.add(torch.tensor([4.0]), torch.tensor([4.5]))
    assert noise.sqnr == pytest.approx(20.0)


def test_one_bit_more_is_six_decibels_more() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(100_000, generator=generator, dtype=torch.float64) * 2 - 1
    ratios = []
    for bits in (6, 7, 8):
        step = 2 / 2**bits
        noise = Noise()
        noise.add(values, (values / step).round() * step)
        ratios.append(noise.sqnr)
    assert ratios[1] - ratios[0] == pytest.approx(6.02, abs=0.1)
    assert ratios[2] - ratios[1] == pytest.approx(6.02, abs=0.1)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, dtype=torch.float16)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
    ],
)
def test_what_is_no_matter_of_precision_is_wrong(expected: torch.Tensor, got: torch.Tensor) -> None:
    noise = Noise()
    noise.add(expected, got)
    noise.add(torch.ones(9), torch.ones(9))
    assert noise.sqnr == -INF


def test_few_of_many_calls_are_from_all_over_them() -> None:
    calls = [(i,) for i in range(100)]
    assert spread(calls, 4) == ((0,), (33,), (66,), (99,))  # type: ignore[arg-type, comparison-overlap]
    assert spread(calls[:3], 4) == tuple(calls[:3])  # type: ignore[arg-type, comparison-overlap]


def test_rows_are_repeated_or_left_out_to_reach_a_size(tmp_path: Path) -> None:
    rows = torch.arange(6.0).reshape(1, 3, 2)
    with Tape(tmp_path / "tape") as tape:
        call = tape.write([rows, torch.tensor([7])])
    examples = Examples(tmp_path / "tape", {}, {}, {})
    inputs = (ValueSpec("x", "float32", (1, "n", 2)), ValueSpec("i", "int64", (1,)))
    for size, wanted in ((2, [[0, 1], [2, 3]]), (5, [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]])):
        ((x, i),) = resized(examples, [call], inputs, {"n": size})
        assert x.tolist() == [wanted] and i.tolist() == [7]


def test_equal_tensors_are_written_once_and_read_back_as_they_were(tmp_path: Path) -> None:
    from mmpack.multimethod.compile.calls import read_calls

    tensors = [
        torch.randn(3, 4).t(),
        torch.tensor(True),
        torch.arange(5, dtype=torch.int64),
        torch.zeros(0, 2),
        torch.randn(4).to(torch.bfloat16),
    ]
    path = tmp_path / "tape"
    with Tape(path) as tape:
        calls = [tape.write(tensors), tape.write(tensors[::-1])]
    assert path.stat().st_size == 12 * 4 + 1 + 5 * 8 + 4 * 2
    first, second = read_calls(path, calls)
    for one, other, tensor in zip(first, second[::-1], tensors, strict=True):
        assert one.dtype is other.dtype is tensor.dtype
        assert torch.equal(one, tensor) and torch.equal(other, tensor)
