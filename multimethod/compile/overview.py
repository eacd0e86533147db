"""Compiling as a whole, while it is under way: what is done and what is not, how long it will still
take, how much memory it has, and what may start in the memory that it is allowed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence

from mmpack.multimethod.compile.costs import Cost, Costs, kind, weight_bytes
from mmpack.multimethod.compile.pool import Running
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import CompileError, counted
from mmpack.multimethod.memory import held
from mmpack.multimethod.progress import Progress, Status


class Overview:
    """Passes on to `progress` what it is told, with a status before it.

    jobs: how many methods are compiled at once. bound: bytes that this process and its workers may
    take together; None: as many as they do. earlier: method -> what it took in an earlier build.
    """

    def __init__(
        self, progress: Progress, jobs: int, bound: int | None, earlier: Mapping[str, Cost]
    ) -> None:
        self._progress = progress
        self._jobs = jobs
        self._bound = bound
        self._costs = Costs(earlier)
        self._kinds: dict[str, str] = {}
        self._weights: dict[str, int] = {}
        self._queued: set[str] = set()
        self._running: dict[str, float] = {}
        self._done, self._cached = 0, 0
        self._workers: Sequence[int] = ()
        self._memory, self.peak = 0, 0

    def plan(self, units: Mapping[str, Unit], cached: int = 0) -> None:
        """What has to be compiled, and how many methods need not be. Raises CompileError for a
        method that cannot be within the bound, even alone."""
        self._cached = cached
        self._queued = set(units)
        self._kinds = {name: kind(unit.backend, unit.options) for name, unit in units.items()}
        self._weights = {name: weight_bytes(unit.module) for name, unit in units.items()}
        if self._bound is None:
            return
        own, wrong = held(os.getpid()), {}
        for name in units:
            if own + self._needs(name) > self._bound:
                wrong[name] = self._needs(name)
        if wrong:
            name = max(wrong, key=lambda name: wrong[name])
            needed = wrong[name]
            others = f" ({counted(len(wrong) - 1, 'other')} too)" if len(wrong) > 1 else ""
            message = (
                f"compiling it is expected to take {_gb(needed)}{others}, beside the {_gb(own)} of "
                f"this process, and {_gb(self._bound, up=False)} are allowed in all: allow "
                f"{_gb(own + needed)}, or make several methods of it"
            )
            raise CompileError(units[name].mistake(message))

    def cached(self, method: str) -> None:
        self._tell()
        self._progress.done(method, "cached")

    def fits(self, job: Job, running: Running) -> bool:
        """Whether a job may start beside those that are at work."""
        if self._bound is None:
            return True
        others = sum(max(self._needs(other.method), held(pid)) for other, pid in running)
        return held(os.getpid()) + others + self._needs(job.method) <= self._bound

    def started(self, job: Job) -> None:
        self._queued.remove(job.method)
        self._running[job.method] = time.monotonic()
        self._tell()
        self._progress.start(job.method)

    def finished(self, answer: Answer) -> None:
        job = answer.job
        del self._running[job.method]
        self._done += 1
        if answer.error is None:
            self._costs.learn(job.method, self.cost(job.method, answer))
        self._tell()
        self._progress.done(job.method, "failed" if answer.error else "")

    def made(self, method: str, note: str) -> None:
        """It is there without a worker."""
        self._queued.remove(method)
        self._done += 1
        self._tell()
        self._progress.done(method, note)

    def tick(self, workers: Sequence[int]) -> None:
        """Some time has passed. workers: ids of their processes."""
        self._workers = workers
        self._tell()

    def cost(self, method: str, answer: Answer | None = None) -> Cost:
        """What a job took; without an answer only what is known of any."""
        kind, weights = self._kinds[method], self._weights[method]
        if answer is None:
            return Cost(kind, weights)
        return Cost(kind, weights, answer.seconds, answer.own_memory)

    def _needs(self, method: str) -> int:
        return self._costs.memory(self._kinds[method], self._weights[method])

    def _tell(self) -> None:
        self._memory = held(os.getpid()) + sum(map(held, self._workers))
        self.peak = max(self.peak, self._memory)
        running, queued = len(self._running), len(self._queued)
        self._progress.status(
            Status(
                done=self._done,
                running=running,
                queued=queued,
                cached=self._cached,
                left=self._left(),
                memory=self._memory,
                peak=self.peak,
            )
        )

    def _left(self) -> float | None:
        """Seconds until the last method is done: no fewer than one of them takes, nor than all take
        on so many workers."""
        now = time.monotonic()
        gone = dict.fromkeys(self._queued, 0.0)
        gone |= {name: now - began for name, began in self._running.items()}
        rest = []
        for name, seconds in gone.items():
            whole = self._costs.seconds(name, self._kinds[name])
            if whole is None:
                return None
            rest.append(max(0.0, whole - seconds))
        return max(sum(rest) / self._jobs, max(rest, default=0.0))


def _gb(count: int, *, up: bool = True) -> str:
    """Rounded so that what is asked for is enough."""
    hundredths = math.ceil(count / 1e7) if up else count // 10**7
    return f"{hundredths / 100:.2f} GB"
