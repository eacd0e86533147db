"""In which order a flow's pipelined runs begin their tasks: planned before, and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mmpack.multimethod.flow.dispatch import Order
from mmpack.multimethod.flow.policies import out_of_order, ranks
from mmpack.multimethod.flow.tasks import Tasks
from mmpack.multimethod.flow.trace import Span, measured
from mmpack.multimethod.flow.work import Times, Work, make_work

Pipelined = Literal["in-order", "out-of-order"]


def make_order(work: Work, workers: Mapping[str, int], schedule: Pipelined) -> Order:
    """The order of a schedule. Out of order, it is that of the shortest simulated one; a run
    follows it as far as real times let it."""
    if schedule == "in-order":
        return Order(tuple(range(len(work))), waits=True)
    return Order(tuple(ranks(out_of_order(work, workers).order)), waits=False)


class Orders:
    """The orders of one flow, by how many tasks and workers there are.

    times: what they are planned by. Unless somebody set them, what a run took that had more pieces
    than all before it, and then the next one of so many: in the first, memory and caches are cold.
    """

    def __init__(self) -> None:
        self._times: Times = {}
        self._pieces = 0
        self._cold = False
        self._made: dict[tuple[object, ...], Order] = {}

    @property
    def times(self) -> Times:
        return self._times

    @times.setter
    def times(self, times: Times) -> None:
        self._times, self._pieces, self._cold = times, -1, False
        self._made.clear()

    def order(
        self,
        tasks: Tasks,
        lanes: Mapping[str, str],
        workers: Mapping[str, int],
        schedule: Pipelined,
    ) -> Order:
        """lanes: method -> lane."""
        key = schedule, len(tasks), *sorted(workers.items())
        if key not in self._made:
            work = make_work(tasks, lanes, self._times)
            self._made[key] = make_order(work, workers, schedule)
        return self._made[key]

    def note(self, spans: Sequence[Span]) -> None:
        """Learn from a whole run, of which nothing is left if nothing of it was wanted."""
        if not spans:
            return
        pieces = 1 + max(span.piece.number for span in spans)
        more = 0 <= self._pieces < pieces
        if more or (self._cold and pieces == self._pieces):
            self.times = measured(spans)
            self._pieces, self._cold = pieces, more
