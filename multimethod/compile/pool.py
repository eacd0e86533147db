"""Worker processes and the queue before them: one method is compiled at a time in each.

A worker that dies takes only its own method with it; a new one takes the next.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from mmpack.multimethod.compile.process import Answer, Job, Worker


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    started: Callable[[Job], None],
    finished: Callable[[Answer], None],
) -> list[Answer]:
    """Run all jobs on `workers` processes and return the answers in the order of the jobs.

    `started` and `finished` are called from several threads, one at a time. A failed job stops
    none of the others; an exception in `started` or `finished`, or Ctrl-C, stops all.
    """
    workers = max(1, min(workers, len(jobs)))
    pool = _Pool(jobs, max(1, (os.cpu_count() or 1) // workers), started, finished)
    threads = [threading.Thread(target=pool.serve, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # in slices, so that Ctrl-C is heard
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
    """What the threads have in common. `lock` guards all of it, and the two callbacks."""

    def __init__(
        self,
        jobs: Sequence[Job],
        threads: int,
        started: Callable[[Job], None],
        finished: Callable[[Answer], None],
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.broken: list[BaseException] = []
        self._threads = threads
        self._started = started
        self._finished = finished
        self._queue: SimpleQueue[Job] = SimpleQueue()
        # Jobs that want the same environment follow each other, since a worker has but one.
        for job in sorted(jobs, key=lambda job: sorted(job.environment.items())):
            self._queue.put(job)
        self._lock = threading.Lock()
        self._living: set[Worker] = set()
        self._stopped = False

    def serve(self) -> None:
        """One thread with, at any time, at most one worker."""
        worker: Worker | None = None
        try:
            while (job := self._next()) is not None:
                if worker is not None and worker.environment != job.environment:
                    self._close(worker)
                    worker = None
                with self._lock:
                    if self._stopped:
                        return
                    if worker is None:
                        worker = Worker(job.log, job.environment)
                        self._living.add(worker)
                    self._started(job)
                answer = worker.run(job, self._threads)
                if not worker.alive:
                    self._close(worker)
                    worker = None
                with self._lock:
                    if self._stopped:
                        return
                    self.answers[job.method] = answer
                    self._finished(answer)
        except BaseException as error:
            self.broken.append(error)
            self.stop()
        finally:
            if worker is not None:
                self._close(worker)

    def stop(self) -> None:
        """Take no more jobs, and kill the workers at those that they are at."""
        with self._lock:
            self._stopped = True
            for worker in self._living:
                worker.kill()

    def _next(self) -> Job | None:
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def _close(self, worker: Worker) -> None:
        with self._lock:
            self._living.discard(worker)
        worker.close()
