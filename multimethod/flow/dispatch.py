"""Tasks run by threads: for each lane its workers, each of which takes the most urgent task that is
ready, again and again.

This is the reference for other engines, and no faster than its calls allow: where they hold the
GIL, they run one after another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter

from attrs import frozen

from mmpack.multimethod.flow.work import Work

Perform = Callable[[int], None]
"""Runs one task, in whatever thread."""


@frozen
class Order:
    """ranks: for each task how urgent it is, 0 most. waits: whether a lane waits for its most
    urgent task to become ready; else another overtakes it."""

    ranks: tuple[int, ...]
    waits: bool


@frozen
class Ran:
    """When a task ran, in seconds of `time.perf_counter`, and on which worker of its lane."""

    task: int
    worker: int
    begin: float
    end: float


class TaskFailed(Exception):
    """A task raised an exception."""

    def __init__(self, task: int, error: BaseException) -> None:
        super().__init__(task, error)
        self.task = task
        self.error = error


def dispatch(
    work: Work, workers: Mapping[str, int], order: Order, perform: Perform
) -> tuple[Ran, ...]:
    """Run all tasks, each after those that it waits for, no two of one method at once.

    Raises TaskFailed if a task raises anything: for the first one in the serial order if several
    do. No task is begun after that. However this ends, by KeyboardInterrupt too, all
    threads have ended before.
    """
    shared = _Shared(work, order, perform)
    threads = [
        threading.Thread(target=shared.serve, args=(lane, worker), name=f"mmpack {lane} {worker}")
        for lane in work.per_lane
        for worker in range(workers[lane])
    ]
    try:
        for thread in threads:
            thread.start()
        shared.wait()
    finally:
        _end(shared, threads)
    if shared.failures:
        task = min(shared.failures)
        raise TaskFailed(task, shared.failures[task])
    return tuple(shared.ran)


class _Shared:
    """What the threads share, under one lock."""

    def __init__(self, work: Work, order: Order, perform: Perform) -> None:
        self.work = work
        self.order = order
        self.perform = perform
        self.changed = threading.Condition()
        self.missing = [len(needed) for needed in work.before]
        self.left: dict[str, deque[int]] = {lane: deque() for lane in work.per_lane}
        for task in sorted(range(len(work)), key=order.ranks.__getitem__):
            self.left[work.lanes[task]].append(task)
        self.ready = {
            lane: {task for task in tasks if not self.missing[task]}
            for lane, tasks in self.left.items()
        }
        self.busy: set[str] = set()
        self.ran: list[Ran] = []
        self.failures: dict[int, BaseException] = {}
        self.stopped = False

    def wait(self) -> None:
        """Until all tasks are over, or one has failed."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or len(self.ran) == len(self.work))

    def stop(self) -> None:
        """Have no other task begin."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def serve(self, lane: str, worker: int) -> None:
        """What the thread of a worker does."""
        while (task := self._take(lane)) is not None:
            begin = perf_counter()
            try:
                self.perform(task)
            except BaseException as error:  # whatever it is, the others must not wait for this task
                with self.changed:
                    self.failures[task] = error
                self.stop()
                return
            self._end(Ran(task, worker, begin, perf_counter()))

    def _take(self, lane: str) -> int | None:
        """The next task of a lane, once there is one; None if there will be none."""
        with self.changed:
            while not self.stopped and self.left[lane]:
                task = self._next(lane)
                if task is not None:
                    self.left[lane].remove(task)  # near its beginning
                    self.ready[lane].remove(task)
                    self.busy.add(self.work.methods[task])
                    return task
                self.changed.wait()
            return None

    def _next(self, lane: str) -> int | None:
        ready = self.ready[lane]
        if self.order.waits:
            ready = ready & {self.left[lane][0]}
        idle = (task for task in ready if self.work.methods[task] not in self.busy)
        return min(idle, key=self.order.ranks.__getitem__, default=None)

    def _end(self, ran: Ran) -> None:
        with self.changed:
            self.ran.append(ran)
            self.busy.remove(self.work.methods[ran.task])
            for other in self.work.after[ran.task]:
                self.missing[other] -= 1
                if self.missing[other] == 0:
                    self.ready[self.work.lanes[other]].add(other)
            self.changed.notify_all()


def _end(shared: _Shared, threads: list[threading.Thread]) -> None:
    """Have all threads end, whoever is impatient: a call that has begun cannot be ended."""
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            shared.stop()
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
