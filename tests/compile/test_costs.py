"""What lowering a method is expected to take, before anything is known and after."""

from __future__ import annotations

import torch
from torch import nn

from mmpack.multimethod.compile import costs
from mmpack.multimethod.compile.costs import BASE, FACTOR, MARGIN, Cost, Costs, kind, weight_bytes
from mmpack.multimethod.compile.widen import compute_in_float32

MB = 10**6


def test_bytes_of_weights_are_those_of_float32_and_each_counts_once() -> None:
    shared = nn.Linear(10, 20, bias=False)
    module = nn.Sequential(shared, nn.ModuleList([shared]), nn.Embedding(5, 2))
    module.register_buffer("ids", torch.zeros(3, dtype=torch.int64))
    assert weight_bytes(module) == 4 * (200 + 10) + 8 * 3
    half = nn.Sequential(nn.Linear(10, 20, bias=False)).to(torch.bfloat16)
    assert weight_bytes(half) == 400  # it is not computed with in float32
    compute_in_float32(half)
    assert weight_bytes(half) == 800


def test_a_kind_is_a_target_with_its_options() -> None:
    assert kind("xnnpack", {"a": 1, "b": 2}) == kind("xnnpack", {"b": 2, "a": 1})
    assert kind("xnnpack", {"a": 1}) != kind("xnnpack", {"a": 2}) != kind("portable", {"a": 2})


def test_memory_is_guessed_until_a_method_of_that_size_was_done() -> None:
    known = Costs({})
    assert known.memory("k", 0) == BASE
    assert known.memory("k", 100 * MB) == BASE + FACTOR * 100 * MB
    known.learn("a", Cost("k", 100 * MB, None, 600 * MB))
    assert known.memory("k", 100 * MB) == 600 * MB * MARGIN
    assert known.memory("k", 200 * MB) == BASE + FACTOR * 200 * MB  # no less than the guess
    assert known.memory("k", 99 * MB) == 600 * MB * MARGIN  # a larger one took no more
    known.learn("b", Cost("k", 100 * MB, None, 500 * MB))
    assert known.memory("k", 100 * MB) == 600 * MB * MARGIN  # the most counts
    known.learn("c", Cost("k", 0, None, 2 * BASE))
    assert known.memory("k", 200 * MB) == 2 * (BASE + FACTOR * 200 * MB)  # a kind that takes more
    assert known.memory("other", 200 * MB) == BASE + FACTOR * 200 * MB
    known.learn("d", Cost("k", 300 * MB, None, None))  # its worker died
    assert known.memory("k", 300 * MB) == 2 * (BASE + FACTOR * 300 * MB)


def test_memory_is_known_from_earlier_builds() -> None:
    known = Costs({"a": Cost("k", 100 * MB, None, 700 * MB)})
    assert known.memory("k", 100 * MB) == 700 * MB * MARGIN


def test_seconds_are_those_of_earlier_builds_at_this_builds_speed() -> None:
    known = Costs({"a": Cost("k", 0, 2.0), "b": Cost("k", 0, 4.0), "c": Cost("l", 0)})
    assert (known.seconds("a", "k"), known.seconds("b", "k")) == (2.0, 4.0)
    assert known.seconds("c", "l") == known.seconds("new", "k") == 3.0  # as any
    known.learn("a", Cost("k", 0, 6.0))
    assert known.seconds("b", "k") == 12.0
    assert known.seconds("new", "k") == 6.0


def test_seconds_are_those_of_the_same_kind_or_of_any() -> None:
    known = Costs({})
    assert known.seconds("a", "k") is None
    known.learn("a", Cost("k", 0))  # its worker was not warm
    assert known.seconds("b", "k") is None
    known.learn("b", Cost("k", 0, 2.0))
    known.learn("c", Cost("l", 0, 8.0))
    known.learn("d", Cost("l", 0, 10.0))
    assert known.seconds("e", "k") == 2.0
    assert known.seconds("e", "l") == 9.0
    assert known.seconds("e", "m") == 20 / 3


def test_the_measured_margins_are_no_less_than_what_was_measured() -> None:
    """Peaks of fresh workers: `xnnpack`, `portable`, an embedding as 8w, `qnn`. In MB."""
    measured = [(4, 441), (100, 573), (400, 1181), (4, 421), (400, 1165), (400, 1586)]
    for weights, peak in (*measured, (4, 593), (100, 867)):
        assert peak * MB < costs.Costs({}).memory("k", weights * MB)
