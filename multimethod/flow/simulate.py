"""What a policy makes of some work: an event simulation, and bounds that no schedule can beat."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import frozen

from mmpack.multimethod.flow.work import Work

Choose = Callable[["State", str, Sequence[int]], int | None]
"""Which of the tasks that could begin now on a lane does; None to let the lane wait for what will
become ready."""


class Policy(Protocol):
    """How tasks are picked. `begin` prepares for some work; what it gives is asked whenever a lane
    has a free worker and something that it could run."""

    @property
    def name(self) -> str: ...

    def begin(self, work: Work, workers: Mapping[str, int]) -> Choose: ...


class State:
    """A simulation as it stands at `time`."""

    def __init__(self, work: Work, workers: Mapping[str, int]) -> None:
        self.work = work
        self.time = 0.0
        self.missing = [len(needed) for needed in work.before]
        self.ready: dict[str, list[int]] = {lane: [] for lane in work.per_lane}
        self.free = {lane: list(range(workers[lane])) for lane in work.per_lane}
        self.busy: set[str] = set()
        self.running: list[tuple[float, int]] = []
        self.begun: list[int] = []
        self.starts = [0.0] * len(work)
        self.places = [0] * len(work)
        for task, count in enumerate(self.missing):
            if count == 0:
                self.ready[work.lanes[task]].append(task)

    def copy(self) -> State:
        made = object.__new__(State)
        made.work, made.time = self.work, self.time
        made.missing = self.missing.copy()
        made.ready = {lane: tasks.copy() for lane, tasks in self.ready.items()}
        made.free = {lane: places.copy() for lane, places in self.free.items()}
        made.busy, made.running = self.busy.copy(), self.running.copy()
        made.begun = self.begun.copy()
        made.starts, made.places = self.starts.copy(), self.places.copy()
        return made

    def candidates(self, lane: str) -> list[int]:
        """What could begin now on a lane."""
        if not self.free[lane]:
            return []
        methods = self.work.methods
        return [task for task in self.ready[lane] if methods[task] not in self.busy]

    def start(self, task: int) -> None:
        lane = self.work.lanes[task]
        self.ready[lane].remove(task)
        self.busy.add(self.work.methods[task])
        self.places[task] = heapq.heappop(self.free[lane])
        self.starts[task] = self.time
        self.begun.append(task)
        heapq.heappush(self.running, (self.time + self.work.seconds[task], task))

    def finish(self) -> None:
        """Go on to the next moment at which something ends, and end all that ends then."""
        self.time = self.running[0][0]
        while self.running and self.running[0][0] == self.time:
            _, task = heapq.heappop(self.running)
            self.busy.remove(self.work.methods[task])
            heapq.heappush(self.free[self.work.lanes[task]], self.places[task])
            for other in self.work.after[task]:
                self.missing[other] -= 1
                if self.missing[other] == 0:
                    self.ready[self.work.lanes[other]].append(other)

    def fill(self, choose: Choose) -> None:
        """Begin all that a policy wants to begin now."""
        for lane in self.ready:
            while candidates := self.candidates(lane):
                task = choose(self, lane, candidates)
                if task is None:
                    break
                self.start(task)


@frozen
class Schedule:
    """When each task begins, and on which worker of its lane. order: the tasks as they begin."""

    policy: str
    work: Work
    workers: Mapping[str, int]
    starts: tuple[float, ...]
    places: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def makespan(self) -> float:
        ends = zip(self.starts, self.work.seconds, strict=True)
        return max((start + second for start, second in ends), default=0.0)

    def bubble(self, lane: str) -> float:
        """The share of its workers' time that a lane stands idle, from the beginning to the end."""
        room = self.makespan * self.workers[lane]
        return 1 - self.work.per_lane[lane] / room if room else 0.0


def simulate(work: Work, workers: Mapping[str, int], policy: Policy) -> Schedule:
    """The schedule that a policy makes of some work, if every task takes exactly its time."""
    state, choose = State(work, workers), policy.begin(work, workers)
    state.fill(choose)
    while state.running:
        state.finish()
        state.fill(choose)
    if len(state.begun) != len(work):
        raise RuntimeError(f"policy {policy.name!r} waits for ever")
    return Schedule(
        policy.name, work, workers, tuple(state.starts), tuple(state.places), tuple(state.begun)
    )


def lower_bound(work: Work, workers: Mapping[str, int]) -> float:
    """No schedule is shorter: the work of each lane shared by its workers, that of each method,
    the longest chain."""
    lanes = (seconds / workers[lane] for lane, seconds in work.per_lane.items())
    return max([*lanes, *work.per_method.values(), *work.tails], default=0.0)


def fill_and_drain_bound(work: Work, workers: Mapping[str, int]) -> float:
    """A bound that is never lower: before a lane's first task can begin, and after its last one is
    over, something must run elsewhere, during which it stands idle."""
    bound = lower_bound(work, workers)
    for lane, seconds in work.per_lane.items():
        own = [task for task, other in enumerate(work.lanes) if other == lane]
        fill = min(work.heads[task] for task in own)
        drain = min(work.tails[task] - work.seconds[task] for task in own)
        bound = max(bound, fill + seconds / workers[lane] + drain)
    return bound
