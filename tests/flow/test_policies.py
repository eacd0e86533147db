"""How near the policies come to what is possible, and to the published rule."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import example, given, settings

from mmpack.multimethod.flow.policies import (
    POLICIES,
    BreadthFirst,
    CriticalPath,
    ForwardBackward,
    Greedy,
    LookAhead,
    out_of_order,
    scarcest,
)
from mmpack.multimethod.flow.simulate import fill_and_drain_bound, lower_bound, simulate
from mmpack.multimethod.flow.work import Work

from .works import BOTH, decoder_work, works

LAYERS, PIECES = 24, 8
SHARES = (1 / 6, 1 / 3, 1 / 2)
"""How much of a layer's static work comes before attention; in SmolLM2-135M 16 %."""


def chunked(ratio: float, scarce: str, grows: bool, share: float) -> Work:
    """A decoder of which one lane has `ratio` times as much to do as the other; attention takes as
    long for each piece, or as long as there are pieces to look back to."""
    static, attention = (1.0, 1 / ratio) if scarce == "npu" else (1 / ratio, 1.0)
    by_piece = [attention * (2 * (n + 1) / (PIECES + 1) if grows else 1) for n in range(PIECES)]
    times: dict[str, float | list[float]] = {}
    for i in range(LAYERS):
        times |= {f"qkv.{i}": share * static, f"attention.{i}": by_piece}
        times[f"mlp.{i}"] = (1 - share) * static
    work = decoder_work(LAYERS, PIECES, times)
    other = {"npu": "cpu", "cpu": "npu"}[scarce]
    assert work.per_lane[scarce] / work.per_lane[other] == pytest.approx(ratio)
    return work


@pytest.mark.parametrize("share", SHARES, ids=lambda share: f"share{share:.2f}")
@pytest.mark.parametrize("grows", [False, True], ids=["constant", "growing"])
@pytest.mark.parametrize("scarce", ["npu", "cpu"])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_the_scarce_lane_is_kept_busy(ratio: int, scarce: str, grows: bool, share: float) -> None:
    work = chunked(ratio, scarce, grows, share)
    found, published = out_of_order(work, BOTH), simulate(work, BOTH, Greedy())
    assert found.bubble(scarce) <= 0.007
    assert found.makespan <= published.makespan
    # What is left is hardly more than what no schedule can do without.
    assert found.makespan <= fill_and_drain_bound(work, BOTH) * 1.0025


def test_a_hundredth_of_a_bubble_more_would_be_noticed() -> None:
    """That the bound of 0.7 % is one: the published rule and strict order do not keep it."""
    work = chunked(1, "npu", True, 1 / 6)
    bubbles = {p.name: simulate(work, BOTH, p).bubble("npu") for p in POLICIES}
    assert bubbles["serial"] == pytest.approx(0.5)
    assert bubbles["in-order"] > 0.4
    assert bubbles["greedy"] > 0.03
    assert min(bubbles["critical-path"], bubbles["breadth-first"]) <= 0.007


def test_the_published_rule_by_hand() -> None:
    """Equation 5: on the scarce lane the least work for the other becomes ready first, on the other
    the most for the scarce one."""
    #            0: npu   1: npu   2: cpu   3: cpu   4: npu   5: npu
    work = Work(
        methods=tuple("abcdef"),
        lanes=("npu", "npu", "cpu", "cpu", "npu", "npu"),
        seconds=(2.0, 2.0, 3.0, 1.0, 1.0, 9.0),
        before=((), (), (0,), (1,), (2,), (3,)),
    )
    assert scarcest(work, BOTH) == "npu"
    schedule = simulate(work, BOTH, Greedy())
    assert schedule.starts[:2] == (2, 0)  # 1 makes 1 s ready for the CPU, 0 makes 3 s

    #            0: cpu   1: cpu   2: npu   3: npu
    work = Work(
        tuple("abcd"), ("cpu", "cpu", "npu", "npu"), (1.0, 1.0, 2.0, 5.0), ((), (), (0,), (1,))
    )
    assert simulate(work, BOTH, Greedy()).starts == (1, 0, 6, 1)


def test_only_what_really_becomes_ready_counts_for_the_published_rule() -> None:
    #  2 waits for both 0 and 1, so neither of them alone makes it ready; 3 waits for 1 alone.
    work = Work(
        tuple("abcd"), ("cpu", "cpu", "npu", "npu"), (1.0, 1.0, 9.0, 1.0), ((), (), (0, 1), (1,))
    )
    assert simulate(work, BOTH, Greedy()).starts[:2] == (1, 0)


def test_critical_path_and_breadth_first_by_hand() -> None:
    #  a short chain 0-1-2 of many tasks, and one long task 3, on one lane
    work = Work(tuple("abcd"), ("cpu",) * 4, (1.0, 1.0, 1.0, 5.0), ((), (0,), (1,), ()))
    assert simulate(work, {"cpu": 1}, CriticalPath()).order == (3, 0, 1, 2)
    assert simulate(work, {"cpu": 1}, BreadthFirst()).order == (0, 3, 1, 2)


def test_looking_ahead_finds_what_the_critical_path_misses() -> None:
    """0 begins the longer chain, but only 1 has something to do for the CPU behind it."""
    work = Work(
        tuple("abcdef"),
        ("npu", "npu", "cpu", "npu", "npu", "cpu"),
        (4.0, 1.0, 6.0, 4.0, 1.0, 1.0),
        ((), (), (1,), (0,), (3,), (2,)),
    )
    blind, seeing = simulate(work, BOTH, CriticalPath()), simulate(work, BOTH, LookAhead())
    assert work.tails[:2] == (9, 8)
    assert (blind.makespan, seeing.makespan) == (12, 10)
    assert out_of_order(work, BOTH).makespan == 10


@settings(max_examples=100, deadline=None)
@given(work=works(most=12))
@example(
    Work(("a", "a", "b"), ("npu", "npu", "cpu"), (1.0, 0.0, 2.0), ((), (), (1,)))  # no time at all
)
def test_back_and_forth_is_never_worse_than_what_it_begins_with(work: Work) -> None:
    begun = [simulate(work, BOTH, policy).makespan for policy in (CriticalPath(), BreadthFirst())]
    assert simulate(work, BOTH, ForwardBackward()).makespan <= min(begun)


def test_back_and_forth_evens_out_the_end_on_several_workers() -> None:
    """A decoder on two workers of one lane: by the critical path all pieces come to the last layer
    at once, where one method after another is left to a single worker."""
    times: dict[str, float | list[float]] = {}
    for i in range(LAYERS):
        growing = [0.3 + 0.1 * piece for piece in range(PIECES)]
        times |= {f"qkv.{i}": 1.0, f"attention.{i}": growing, f"mlp.{i}": 5.0}
    work = evolve(decoder_work(LAYERS, PIECES, times), lanes=("cpu",) * 3 * LAYERS * PIECES)
    bound = lower_bound(work, {"cpu": 2})
    assert simulate(work, {"cpu": 2}, CriticalPath()).makespan > 1.01 * bound
    assert simulate(work, {"cpu": 2}, ForwardBackward()).makespan < 1.006 * bound


def test_work_reversed() -> None:
    work = Work(tuple("abc"), ("x", "y", "y"), (1.0, 2.0, 3.0), ((), (0,), (0, 1)))
    turned = work.reversed
    assert turned == Work(tuple("cba"), ("y", "y", "x"), (3.0, 2.0, 1.0), ((), (0,), (0, 1)))
    assert turned.reversed == work


def test_of_equally_good_ones_the_first_is_taken() -> None:
    assert out_of_order(decoder_work(1, 1, {}), BOTH).policy == "critical-path"
