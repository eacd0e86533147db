"""The optimum against all orders tried one by one, and the policies against the optimum."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmpack.multimethod.flow.optimum import optimum
from mmpack.multimethod.flow.policies import POLICIES
from mmpack.multimethod.flow.simulate import lower_bound, simulate
from mmpack.multimethod.flow.work import Work

from .works import BOTH, decoder_work, works

WORKERS = st.fixed_dictionaries({"npu": st.integers(1, 2), "cpu": st.integers(1, 2)})


def tried_one_by_one(work: Work, workers: dict[str, int]) -> float:
    """The shortest of all schedules that begin the tasks in some order, each on the worker of its
    lane that is free first, as early as that, its method and what it waits for admit."""
    best = float("inf")
    for order in itertools.permutations(range(len(work))):
        free = {lane: [0.0] * workers[lane] for lane in work.lanes}
        methods: dict[str, float] = {}
        ends: dict[int, float] = {}
        for task in order:
            if any(other not in ends for other in work.before[task]):
                break
            place = min(free[work.lanes[task]])
            over = (
                max(
                    [place, methods.get(work.methods[task], 0.0)]
                    + [ends[other] for other in work.before[task]]
                )
                + work.seconds[task]
            )
            free[work.lanes[task]].remove(place)
            free[work.lanes[task]].append(over)
            methods[work.methods[task]] = ends[task] = over
        else:
            best = min(best, max(ends.values()))
    return best


NO_TIME = Work(
    methods=("a", "a", "b", "a", "b", "a"),
    lanes=("npu", "npu", "cpu", "npu", "cpu", "npu"),
    seconds=(0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    before=((), (), (), (), (0,), (4,)),
)
"""All begin at once, but not in any order: 4 takes no time, and goes before 2."""


@settings(max_examples=150, deadline=None)
@given(work=works(most=6), workers=WORKERS)
@example(work=NO_TIME, workers={"npu": 1, "cpu": 1})
def test_it_is_the_best_of_all_orders(work: Work, workers: dict[str, int]) -> None:
    assert optimum(work, workers) == tried_one_by_one(work, workers)


@settings(max_examples=100, deadline=None)
@given(work=works(most=12), workers=WORKERS)
def test_no_policy_beats_it(work: Work, workers: dict[str, int]) -> None:
    best = optimum(work, workers)
    assert best is not None and best >= lower_bound(work, workers)
    for policy in POLICIES:
        assert simulate(work, workers, policy).makespan >= best


def test_two_layers_of_four_pieces() -> None:
    times = {"qkv.0": 1, "qkv.1": 1, "attention.0": 3, "attention.1": 3, "mlp.0": 2, "mlp.1": 2}
    work = decoder_work(2, 4, times)
    # The CPU waits for the first qkv, then never: 8 calls of 3; then the last mlp.
    assert optimum(work, BOTH) == 1 + 24 + 2


def test_what_takes_too_long_is_said_to_be_unknown() -> None:
    seconds = (7.0, 7.0, 6.0, 6.0, 5.0, 5.0, 4.0, 4.0, 4.0)  # the longest first is 15
    hard = Work(tuple("abcdefghi"), ("cpu",) * 9, seconds, ((),) * 9)
    assert optimum(hard, {"cpu": 4}, tries=3) is None
    assert optimum(hard, {"cpu": 4}) == 12
    many = Work(tuple("abcdefghi" * 9), ("cpu",) * 81, seconds * 9, ((),) * 81)
    assert optimum(many, {"cpu": 5}) is None  # 432 / 5 is no sum of whole seconds
