"""The shortest schedule there is, by search: for small cases, to hold the policies against.

Source: branch and bound over semi-active schedules. Begun in the order of their starts, each task
as early as what was begun before it admits, the tasks of some shortest schedule give one that is as
short (Sprecher, Kolisch, Drexl, "Semi-active, active, and non-delay schedules", 1995); so those
orders are all that is tried.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmpack.multimethod.flow.policies import out_of_order
from mmpack.multimethod.flow.simulate import fill_and_drain_bound
from mmpack.multimethod.flow.work import Work

_CLOSE = 1e-9
_MANY = 60


def optimum(work: Work, workers: Mapping[str, int], tries: int = 20_000) -> float | None:
    """The makespan of a shortest schedule; None if there are many tasks, or so many tries were not
    enough to be sure of it."""
    best = out_of_order(work, workers).makespan
    if best <= fill_and_drain_bound(work, workers) * (1 + _CLOSE):
        return best
    if len(work) > _MANY:
        return None
    search = _Search(work, workers, best, tries)
    search.run()
    return search.best if search.tries >= 0 else None


class _Search:
    """Depth first, most urgent tasks first. `seen`: for a set of tasks that were begun, when what
    they hold becomes free, for each way to begin them that nothing seen before was as good as."""

    def __init__(self, work: Work, workers: Mapping[str, int], best: float, tries: int) -> None:
        self.work = work
        self.best = best
        self.tries = tries
        self.missing = [len(needed) for needed in work.before]
        self.ends: list[float] = [0.0] * len(work)
        self.free = {lane: [0.0] * workers[lane] for lane in work.per_lane}
        self.methods = dict.fromkeys(work.methods, 0.0)
        self.left = dict(work.per_lane)
        self.open = {task for task, count in enumerate(self.missing) if count == 0}
        self.seen: dict[int, list[tuple[float, ...]]] = {}

    def run(self, begun: int = 0, now: tuple[float, int] = (0.0, -1), end: float = 0.0) -> None:
        """Try all ways to go on from what was `begun` (bits), the last of it at `now`."""
        if not self.open:
            self.best = min(self.best, end)
            return
        self.tries -= 1
        if self.tries < 0 or self._bound(now[0]) >= self.best * (1 - _CLOSE):
            return
        if self._known(begun, now):
            return
        starts = {task: self._start(task) for task in self.open}
        urgent = sorted(self.open, key=lambda task: (starts[task], -self.work.tails[task], task))
        for task in urgent:
            # What begins earlier was tried in another order; so were those that begin at once,
            # but for tasks that take no time: others may have to wait for these and begin then.
            turn = task if self.work.seconds[task] else len(self.work)
            if (starts[task], turn) > now:
                self._go_on(task, starts[task], begun, end)

    def _go_on(self, task: int, start: float, begun: int, end: float) -> None:
        """Begin a task, try what follows, and take it back."""
        work, over = self.work, start + self.work.seconds[task]
        lane, method = work.lanes[task], work.methods[task]
        free, used = self.free[lane], self.methods[method]
        self.free[lane] = sorted([*free[1:], over])
        self.methods[method] = self.ends[task] = over
        self.left[lane] -= work.seconds[task]
        ready = []
        for other in work.after[task]:
            self.missing[other] -= 1
            if self.missing[other] == 0:
                ready.append(other)
        self.open.remove(task)
        self.open.update(ready)
        now = (start, task if work.seconds[task] else -1)
        self.run(begun | 1 << task, now, max(end, over))
        self.open.difference_update(ready)
        self.open.add(task)
        for other in work.after[task]:
            self.missing[other] += 1
        self.left[lane] += work.seconds[task]
        self.methods[method], self.free[lane] = used, free

    def _start(self, task: int) -> float:
        """When a task can begin, if all that was begun stays as it is."""
        work = self.work
        over = (self.ends[other] for other in work.before[task])
        return max([self.free[work.lanes[task]][0], self.methods[work.methods[task]], *over])

    def _bound(self, now: float) -> float:
        """No way to go on is over earlier."""
        chains = (self._start(task) + self.work.tails[task] for task in self.open)
        lanes = (
            (sum(max(at, now) for at in free) + self.left[lane]) / len(free)
            for lane, free in self.free.items()
            if self.left[lane] > 0
        )
        return max([*chains, *lanes])

    def _known(self, begun: int, now: tuple[float, int]) -> bool:
        """Whether the same tasks were begun before in a way that leaves nothing free later."""
        after = self.work.after
        held = [*now, *(at for lane in self.free.values() for at in lane)]
        held += self.methods.values()
        held += [
            self.ends[task] if any(not begun >> other & 1 for other in after[task]) else 0.0
            for task in range(len(self.work))
            if begun >> task & 1
        ]
        ways, own = self.seen.setdefault(begun, []), tuple(held)
        if any(all(a <= b for a, b in zip(way, own, strict=True)) for way in ways):
            return True
        ways.append(own)
        return False
