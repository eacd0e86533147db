"""How a lane picks among the tasks that it could run.

All are deterministic. `out_of_order` simulates those that let tasks overtake others, and takes the
best of what they make.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from attrs import field, frozen

from mmpack.multimethod.flow.simulate import (
    Choose,
    Schedule,
    State,
    fill_and_drain_bound,
    simulate,
)
from mmpack.multimethod.flow.work import Work

_NEAR = 1.005
"""A schedule so near the bound is not sought to be improved."""
_MANY = 1000


@frozen
class Serial:
    """One task at a time, in the serial order."""

    name: str = field(default="serial", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        all_of_them = deque(range(len(work)))
        return _waiting(dict.fromkeys(work.per_lane, all_of_them), alone=True)


@frozen
class InOrder:
    """Each lane runs its tasks in the serial order, and waits for the next one to become ready."""

    name: str = field(default="in-order", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        own = {
            lane: deque(task for task, other in enumerate(work.lanes) if other == lane)
            for lane in work.per_lane
        }
        return _waiting(own, alone=False)


@frozen
class Greedy:
    """The published rule, the yardstick for the others: Xu et al., "Fast On-device LLM Inference
    with NPUs" (arXiv 2407.05858), section 3.4, equation 5. A task counts by the work for the other
    processor that becomes ready once it is over: the more the better if that is the scarce one
    (there: the NPU), the less the better on the scarce one itself. Scarce is the lane with most
    work for each of its workers."""

    name: str = field(default="greedy", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        scarce = scarcest(work, workers)

        def choose(state: State, lane: str, candidates: Sequence[int]) -> int:
            def rank(task: int) -> tuple[float, int]:
                ready = sum(
                    work.seconds[other]
                    for other in work.after[task]
                    if state.missing[other] == 1 and work.lanes[other] != lane
                )
                return (ready if lane == scarce else -ready), task

            return min(candidates, key=rank)

        return choose


@frozen
class CriticalPath:
    """First the task that begins the longest chain of what is still to do."""

    name: str = field(default="critical-path", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        return _ranked([(-tail, task) for task, tail in enumerate(work.tails)])


@frozen
class BreadthFirst:
    """First the task with fewest tasks before it on its longest chain: all pieces go through a
    layer before one goes on to the next."""

    name: str = field(default="breadth-first", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        depths: list[int] = []
        for needed in work.before:
            depths.append(1 + max((depths[other] for other in needed), default=-1))
        return _ranked([(depth, task) for task, depth in enumerate(depths)])


@frozen
class ForwardBackward:
    """Makes a schedule from its end to its beginning, in which what ends last in another one comes
    first; from that one from the beginning again; and so on. What has time moves to the end, and
    makes room for what has none. The best one is followed.

    Source: Li, Willis, "An iterative scheduling technique for resource-constrained project
    scheduling", European Journal of Operational Research 56 (1992).
    """

    times: int = 5
    name: str = field(default="forward-backward", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        tried = [simulate(work, workers, policy) for policy in (CriticalPath(), BreadthFirst())]
        schedule = min(tried, key=lambda schedule: schedule.makespan)
        best = schedule
        for _ in range(self.times):
            backward = simulate(work.reversed, workers, _Ranked(_latest_first(schedule)))
            schedule = simulate(work, workers, _Ranked(_latest_first(backward)))
            best = min(best, schedule, key=lambda schedule: schedule.makespan)
        return _ranked(ranks(best.order))


@frozen
class _Ranked:
    """By given ranks."""

    by: Sequence[tuple[float, int]]
    name: str = field(default="ranked", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        return _ranked(self.by)


@frozen
class LookAhead:
    """Tries each of the most urgent tasks: simulates what follows, by the critical path, until some
    more have begun, and takes the one after which the least time must still pass."""

    width: int = 3
    depth: int = 24
    name: str = field(default="look-ahead", init=False)

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose:
        base = CriticalPath().begin(work, workers)
        rest = dict(work.per_lane)

        def choose(state: State, lane: str, candidates: Sequence[int]) -> int:
            urgent = sorted(candidates, key=lambda task: (-work.tails[task], task))[: self.width]
            best = urgent[0]
            if len(urgent) > 1:
                best = min(urgent, key=lambda task: self._cost(state, task, base, rest, workers))
            rest[lane] -= work.seconds[best]
            return best

        return choose

    def _cost(
        self,
        state: State,
        task: int,
        base: Choose,
        rest: Mapping[str, float],
        workers: Mapping[str, int],
    ) -> tuple[float, float]:
        """At what time all can be over at best if this task begins now, as far as is looked; and
        the mean of what tells so, where that is the same for several."""
        ahead, left = state.copy(), dict(rest)
        begun: list[int] = []

        def note(state: State, lane: str, candidates: Sequence[int]) -> int | None:
            chosen = base(state, lane, candidates) if len(begun) < self.depth else None
            if chosen is not None:
                begun.append(chosen)
                left[lane] -= state.work.seconds[chosen]
            return chosen

        ahead.start(task)
        left[state.work.lanes[task]] -= state.work.seconds[task]
        ahead.fill(note)
        while ahead.running and len(begun) < self.depth:
            ahead.finish()
            ahead.fill(note)
        bounds = list(_bounds(ahead, left, workers))
        return max(bounds), sum(bounds)


QUICK = (CriticalPath(), BreadthFirst(), Greedy())
SLOW = (ForwardBackward(), LookAhead())
POLICIES = (Serial(), InOrder(), *QUICK, *SLOW)


def scarcest(work: Work, workers: Mapping[str, int]) -> str:
    """The lane with most work for each of its workers; of equal ones that of the first task."""
    return max(work.per_lane, key=lambda lane: work.per_lane[lane] / workers[lane])


def out_of_order(work: Work, workers: Mapping[str, int]) -> Schedule:
    """The shortest schedule that a policy makes which lets tasks overtake others; of equally short
    ones the first in `POLICIES`. Those that take long, for thousands of tasks seconds, are asked
    if there are fewer, and only while the others' schedules are longer than they need be."""
    tried = [simulate(work, workers, policy) for policy in QUICK]
    near = fill_and_drain_bound(work, workers) * _NEAR
    for policy in SLOW if len(work) <= _MANY else ():
        if min(schedule.makespan for schedule in tried) > near:
            tried.append(simulate(work, workers, policy))
    return min(tried, key=lambda schedule: schedule.makespan)


def ranks(order: Sequence[int]) -> list[int]:
    """For each task its place in an order."""
    places = [0] * len(order)
    for place, task in enumerate(order):
        places[task] = place
    return places


def _ranked(by: Sequence[int] | Sequence[tuple[float, int]]) -> Choose:
    def choose(state: State, lane: str, candidates: Sequence[int]) -> int:
        return min(candidates, key=by.__getitem__)

    return choose


def _latest_first(schedule: Schedule) -> list[tuple[float, int]]:
    """Ranks for the reversed work: what ends last comes first."""
    last = len(schedule.starts) - 1
    ends = [
        start + seconds
        for start, seconds in zip(schedule.starts, schedule.work.seconds, strict=True)
    ]
    return [(-ends[last - task], task) for task in range(last + 1)]


def _waiting(following: Mapping[str, deque[int]], alone: bool) -> Choose:
    """Lanes that run what follows, and wait if it is not ready; `alone`: while nothing else runs.
    Lanes may follow one queue."""

    def choose(state: State, lane: str, candidates: Sequence[int]) -> int | None:
        if following[lane][0] not in candidates or (alone and state.running):
            return None
        return following[lane].popleft()

    return choose


def _bounds(state: State, left: Mapping[str, float], workers: Mapping[str, int]) -> Iterator[float]:
    """Times before which not all can be over: for each lane what it still has to do, for each task
    that runs or could the chain behind it."""
    work = state.work
    busy = dict.fromkeys(left, 0.0)
    for end, task in state.running:
        busy[work.lanes[task]] += end - state.time
        yield end - work.seconds[task] + work.tails[task]
    for lane, seconds in left.items():
        yield state.time + (busy[lane] + seconds) / workers[lane]
    for tasks in state.ready.values():
        for task in tasks:
            yield state.time + work.tails[task]
