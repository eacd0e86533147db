"""Schedules that break no rule, and bounds that none of them beats."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpack.multimethod.errors import FlowError
from mmpack.multimethod.flow.policies import POLICIES, InOrder, Serial, out_of_order
from mmpack.multimethod.flow.simulate import (
    Schedule,
    fill_and_drain_bound,
    lower_bound,
    simulate,
)
from mmpack.multimethod.flow.work import Work, settled_workers

from .works import BOTH, decoder_work, works

WORKERS = st.fixed_dictionaries({"npu": st.integers(1, 2), "cpu": st.integers(1, 2)})


def require_right(schedule: Schedule) -> None:
    """Nothing begins before what it waits for, and neither a worker nor a method is used twice."""
    work = schedule.work
    ends = [a + b for a, b in zip(schedule.starts, work.seconds, strict=True)]
    for task, needed in enumerate(work.before):
        assert all(ends[other] <= schedule.starts[task] for other in needed)
    for one in range(len(work)):
        place = schedule.places[one]
        assert 0 <= place < schedule.workers[work.lanes[one]]
        for other in range(one):
            same = work.methods[one] == work.methods[other]
            beside = (work.lanes[one], place) == (work.lanes[other], schedule.places[other])
            if same or beside:
                apart = ends[one] <= schedule.starts[other] or ends[other] <= schedule.starts[one]
                assert apart


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@settings(max_examples=150, deadline=None)
@given(work=works(most=12), workers=WORKERS)
def test_every_policy_makes_right_schedules(
    policy: object, work: Work, workers: dict[str, int]
) -> None:
    schedule = simulate(work, workers, policy)  # type: ignore[arg-type]
    require_right(schedule)
    assert schedule.policy == policy.name  # type: ignore[attr-defined]
    assert lower_bound(work, workers) <= fill_and_drain_bound(work, workers) <= schedule.makespan
    assert simulate(work, workers, policy) == schedule  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(work=works(most=12), workers=WORKERS)
def test_serial_is_one_after_another(work: Work, workers: dict[str, int]) -> None:
    schedule = simulate(work, workers, Serial())
    assert schedule.makespan == sum(work.seconds)
    assert list(schedule.starts) == [sum(work.seconds[:task]) for task in range(len(work))]


def test_in_order_waits_where_others_overtake() -> None:
    """a(0) a(1) on one lane, b(0) b(1) on the other, and c(0) c(1) on the first again."""
    work = decoder_work(1, 2, {"qkv.0": 1.0, "attention.0": 3.0, "mlp.0": 1.0})
    schedule = simulate(work, BOTH, InOrder())
    # npu: qkv@0 0-1, mlp@0 4-5, qkv@1 5-6, mlp@1 9-10; cpu: 1-4, 6-9
    assert schedule.starts == (0, 1, 4, 5, 6, 9)
    overtaking = out_of_order(work, BOTH)
    # npu: qkv@0 0-1, qkv@1 1-2, mlp@0 4-5, mlp@1 7-8; cpu: 1-4, 4-7
    assert overtaking.starts == (0, 1, 4, 1, 4, 7)
    assert overtaking.order == (0, 3, 1, 2, 4, 5)
    assert (schedule.makespan, overtaking.makespan) == (10, 8)
    assert (overtaking.bubble("cpu"), overtaking.bubble("npu")) == (0.25, 0.5)


def test_bounds_by_hand() -> None:
    work = decoder_work(1, 2, {"qkv.0": 1.0, "attention.0": 3.0, "mlp.0": 1.0})
    assert work.per_lane == {"npu": 4.0, "cpu": 6.0}
    assert work.heads == (0, 1, 4, 0, 1, 4)
    assert work.tails == (5, 4, 1, 5, 4, 1)
    assert lower_bound(work, BOTH) == 6
    assert fill_and_drain_bound(work, BOTH) == 8
    # Two workers do not help one method, which is one thread's at a time.
    assert lower_bound(work, {"npu": 1, "cpu": 2}) == 6


def test_nothing_to_do_takes_no_time() -> None:
    work = Work(("a", "b"), ("npu", "cpu"), (0.0, 0.0), ((), (0,)))
    for policy in POLICIES:
        schedule = simulate(work, BOTH, policy)
        assert (schedule.makespan, schedule.bubble("npu")) == (0, 0)


def test_times_may_differ_from_piece_to_piece_and_may_be_unknown() -> None:
    work = decoder_work(1, 3, {"attention.0": [1.0, 3.0], "mlp.0": 2})
    assert work.seconds == (2, 1, 2, 2, 3, 2, 2, 3, 2)  # qkv.0: the mean of what is known
    assert decoder_work(1, 1, {}).seconds == (1, 1, 1)


def test_times_that_are_none_are_refused() -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(FlowError, match=r"method 'mlp\.0' cannot take"):
            decoder_work(1, 1, {"mlp.0": wrong})


def test_workers_are_settled() -> None:
    assert settled_workers(["npu", "cpu", "npu"], None) == {"npu": 1, "cpu": 1}
    assert settled_workers(["npu", "cpu"], {"cpu": 3}) == {"npu": 1, "cpu": 3}
    with pytest.raises(FlowError, match="no method is on lane 'npuu'; did you mean 'npu'"):
        settled_workers(["npu", "cpu"], {"npuu": 1})
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(FlowError, match="lane 'npu' must have at least 1 worker, got"):
            settled_workers(["npu"], {"npu": wrong})  # type: ignore[dict-item]
