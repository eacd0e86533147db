"""What there is to schedule: tasks with their lanes and times, and what may run beside what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from attrs import frozen

from mmpack.multimethod.errors import FlowError, nearest
from mmpack.multimethod.flow.tasks import Tasks

Times = Mapping[str, float | Sequence[float]]
"""Method -> seconds of one call; or for each piece from the first on, and the last of them for
all later pieces."""


@frozen(slots=False)
class Work:
    """Tasks by number. Those of one lane share its workers, each of which runs one at a time; two
    of one method never run at once, since a loaded method is one thread's at a time.

    before: for each task those that must be over before it begins, all of smaller numbers.
    """

    methods: tuple[str, ...]
    lanes: tuple[str, ...]
    seconds: tuple[float, ...]
    before: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.seconds)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """For each task those that wait for it."""
        after: list[list[int]] = [[] for _ in self.before]
        for task, needed in enumerate(self.before):
            for other in needed:
                after[other].append(task)
        return tuple(map(tuple, after))

    @cached_property
    def heads(self) -> tuple[float, ...]:
        """For each task the seconds that must pass before it can begin."""
        heads: list[float] = []
        for needed in self.before:
            heads.append(max((heads[other] + self.seconds[other] for other in needed), default=0.0))
        return tuple(heads)

    @cached_property
    def tails(self) -> tuple[float, ...]:
        """For each task the seconds from its beginning to the end of the longest chain that it
        begins."""
        tails = list(self.seconds)
        for task in reversed(range(len(tails))):
            tails[task] += max((tails[other] for other in self.after[task]), default=0.0)
        return tuple(tails)

    @cached_property
    def reversed(self) -> Work:
        """The same work from its end to its beginning: task n of N is task N - 1 - n there."""
        last = len(self) - 1
        after = (sorted(last - other for other in needed) for needed in reversed(self.after))
        return Work(
            self.methods[::-1], self.lanes[::-1], self.seconds[::-1], tuple(map(tuple, after))
        )

    @cached_property
    def per_lane(self) -> dict[str, float]:
        """Seconds of work on each lane, lanes in the order in which their first tasks come."""
        return _sums(zip(self.lanes, self.seconds, strict=True))

    @cached_property
    def per_method(self) -> dict[str, float]:
        return _sums(zip(self.methods, self.seconds, strict=True))


def make_work(tasks: Tasks, lanes: Mapping[str, str], times: Times | None = None) -> Work:
    """The tasks of a run, as a scheduler sees them. lanes: method -> lane. times: what is missing
    takes as long as the mean of what is there; all alike if nothing is known."""
    methods = tuple(map(tasks.method, range(len(tasks))))
    known = dict(times or {})
    each = {name: _seconds(name, known.get(name, ())) for name in dict.fromkeys(methods)}
    given = [second for seconds in each.values() for second in seconds]
    other = sum(given) / len(given) if given else 1.0
    return Work(
        methods=methods,
        lanes=tuple(lanes[method] for method in methods),
        seconds=tuple(
            _of_piece(each[method], tasks.at(task)[1].number, other)
            for task, method in enumerate(methods)
        ),
        before=tasks.before,
    )


def settled_workers(lanes: Iterable[str], given: Mapping[str, int] | None) -> dict[str, int]:
    """Workers of each lane, one where nothing is given. Raises FlowError for a lane that is not
    there and for numbers that are none."""
    workers = dict.fromkeys(lanes, 1)
    for lane, count in (given or {}).items():
        if lane not in workers:
            raise FlowError(
                f"no method is on lane {lane!r}{nearest(lane, workers)}; "
                f"lanes: {', '.join(workers) or 'none'}"
            )
        if type(count) is not int or count < 1:
            raise FlowError(f"lane {lane!r} must have at least 1 worker, got {count!r}")
        workers[lane] = count
    return workers


def _seconds(name: str, given: float | Sequence[float]) -> tuple[float, ...]:
    seconds = tuple(given) if isinstance(given, Sequence) else (given,)
    for second in seconds:
        if not 0 <= second < float("inf"):
            raise FlowError(f"method {name!r} cannot take {second!r} seconds")
    return seconds


def _of_piece(seconds: tuple[float, ...], piece: int, other: float) -> float:
    return seconds[min(piece, len(seconds) - 1)] if seconds else other


def _sums(parts: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, second in parts:
        sums[name] = sums.get(name, 0.0) + second
    return sums
