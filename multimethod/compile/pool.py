"""Worker processes and the queue before them: one method is compiled at a time in each.

A worker that dies takes only its own method with it; a new one takes the next. Where a job has to
wait until there is room for it, no worker waits with it, since that would take room itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from mmpack.multimethod.compile.process import Answer, Job, Worker
from mmpack.multimethod.compile.spare import Spare

Running = Sequence[tuple[Job, int]]
"""Jobs at work, each with its worker's process id; 0 for one whose worker is about to start."""
TICK = 0.5
"""Seconds."""


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    started: Callable[[Job], None],
    finished: Callable[[Answer], None],
    *,
    fits: Callable[[Job, Running], bool] = lambda job, running: True,
    tick: Callable[[Sequence[int]], None] = lambda pids: None,
    spare: Spare | None = None,
) -> list[Answer]:
    """Run all jobs on `workers` processes and return the answers in the order of the jobs.

    `started`, `finished`, `fits` and `tick` are called from several threads, one at a time. A
    failed job stops none of the others; an exception in one of the four, or Ctrl-C, stops all.

    fits: is asked before a job starts beside others; alone, each may. tick: is told all workers'
    process ids, twice a second. spare: is taken before another worker is begun.
    """
    workers = max(1, min(workers, len(jobs)))
    pool = _Pool(jobs, max(1, cores() // workers), started, finished, fits, spare)
    threads = [threading.Thread(target=pool.serve, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        ticked = 0.0
        for thread in threads:
            while thread.is_alive():  # in slices, so that Ctrl-C is heard
                if time.monotonic() >= ticked + TICK:
                    pool.tell(tick)
                    ticked = time.monotonic()
                thread.join(0.2)
    except BaseException:
        pool.stop()
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()
        raise
    if pool.broken:
        raise pool.broken[0]
    return [pool.answers[job.method] for job in jobs]


class _Pool:
    """What the threads have in common. `_lock` guards all of it, and the callbacks; `_changed`
    wakes those that wait for room."""

    def __init__(
        self,
        jobs: Sequence[Job],
        threads: int,
        started: Callable[[Job], None],
        finished: Callable[[Answer], None],
        fits: Callable[[Job, Running], bool],
        spare: Spare | None,
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.broken: list[BaseException] = []
        self._threads = threads
        self._started = started
        self._finished = finished
        self._fits = fits
        self._spare = spare
        # Jobs that want the same environment follow each other, since a worker has but one.
        self._queue = sorted(jobs, key=lambda job: sorted(job.environment.items()))
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._living: set[Worker] = set()
        self._running: dict[str, tuple[Job, int]] = {}
        self._stopped = False

    def serve(self) -> None:
        """One thread with, at any time, at most one worker."""
        worker: Worker | None = None
        job: Job | None = None
        try:
            while True:
                if job is None:
                    if worker is not None:
                        self._close(worker)
                        worker = None
                    with self._lock:
                        job = self._wait()
                    if job is None:
                        return
                if worker is not None and worker.environment != job.environment:
                    self._close(worker)
                    worker = None
                with self._lock:
                    if self._stopped:
                        return
                    if worker is None:
                        worker = self._begin(job)
                        self._living.add(worker)
                    self._running[job.method] = (job, worker.pid)
                    self._started(job)
                answer = worker.run(job, self._threads)
                if not worker.alive:
                    self._close(worker)
                    worker = None
                with self._lock:
                    if self._stopped:
                        return
                    del self._running[job.method]
                    self.answers[job.method] = answer
                    self._finished(answer)
                    job = self._take()  # now: those that wait have no warm worker
                    self._changed.notify_all()
        except BaseException as error:
            self.broken.append(error)
            self.stop()
        finally:
            if worker is not None:
                self._close(worker)

    def _begin(self, job: Job) -> Worker:
        """The spare, if it will do; else it is in the way of others' memory."""
        if self._spare is not None:
            if (taken := self._spare.take(job.environment)) is not None:
                return taken
            self._spare.dismiss()
        return Worker(job.log, job.environment)

    def tell(self, tick: Callable[[Sequence[int]], None]) -> None:
        with self._lock:
            tick([worker.pid for worker in self._living])

    def stop(self) -> None:
        """Take no more jobs, and kill the workers at those that they are at."""
        with self._lock:
            self._stopped = True
            self._queue.clear()
            for worker in self._living:
                worker.kill()
            self._changed.notify_all()

    def _wait(self) -> Job | None:
        """The next job, once there is room for one; None if there are no more."""
        while (job := self._take()) is None and self._queue:
            self._changed.wait()
        return job

    def _take(self) -> Job | None:
        """The first job that fits beside those at work, which from here on it is one of."""
        for number, job in enumerate(self._queue):
            if not self._running or self._fits(job, list(self._running.values())):
                self._running[job.method] = (job, 0)
                return self._queue.pop(number)
        return None

    def _close(self, worker: Worker) -> None:
        with self._lock:
            self._living.discard(worker)
        worker.close()


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
