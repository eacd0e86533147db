"""Worker processes and the queue before them: one method is compiled at a time in each.

A worker that dies takes only its own method with it; a new one takes the next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from attrs import frozen


@frozen
class Job:
    """One exported program to lower. All paths are absolute."""

    method: str
    unit: Path
    backend: str
    options: dict[str, Any]
    output: Path
    log: Path


@frozen
class Answer:
    """What came of a job: the worker's figures, or an error in words."""

    job: Job
    figures: dict[str, Any]
    error: str | None


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    started: Callable[[Job], None],
    finished: Callable[[Answer], None],
) -> list[Answer]:
    """Run all jobs on `workers` processes and return the answers in the order of the jobs.

    `started` and `finished` are called from several threads, one at a time. A failed job stops
    none of the others.
    """
    queue: SimpleQueue[Job] = SimpleQueue()
    for job in jobs:
        queue.put(job)
    answers: dict[str, Answer] = {}
    lock = threading.Lock()
    workers = max(1, min(workers, len(jobs)))
    threads = max(1, (os.cpu_count() or 1) // workers)
    stop = threading.Event()

    def serve() -> None:
        worker: _Worker | None = None
        try:
            while not stop.is_set():
                try:
                    job = queue.get_nowait()
                except Empty:
                    return
                worker = worker or _Worker()
                with lock:
                    started(job)
                answer = worker.run(job, threads)
                if not worker.alive:
                    worker.close()
                    worker = None
                with lock:
                    answers[job.method] = answer
                    finished(answer)
        finally:
            if worker is not None:
                worker.close()

    pool = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    for thread in pool:
        thread.start()
    try:
        for thread in pool:
            while thread.is_alive():  # in slices, so that Ctrl-C is heard
                thread.join(0.2)
    except BaseException:
        stop.set()
        raise
    return [answers[job.method] for job in jobs if job.method in answers]


class _Worker:
    """One warm process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmpack.multimethod.compile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the parent, which closes stdin; a worker may finish what it writes.
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: Job, threads: int) -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = {
            "method": job.method,
            "unit": str(job.unit),
            "backend": job.backend,
            "options": job.options,
            "output": str(job.output),
            "log": str(job.log),
            "threads": threads,
        }
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except (BrokenPipeError, OSError):
            reply = ""
        if reply:
            figures = json.loads(reply)
            error = figures.pop("error", None)
            return Answer(job, figures, f"{error}\n  log: {job.log}" if error else None)
        code = self._process.wait()
        return Answer(
            job, {}, f"{job.method}: the compiler process died ({_how(code)})\n  log: {job.log}"
        )

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
