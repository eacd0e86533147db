"""One worker process, as its parent sees it: `worker.py` is the other side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import field, frozen

from mmpack.multimethod.compile.worker import EXPECT

# -P: what lies in the working directory is not to be imported.
COMMAND = (sys.executable, "-P", "-m", "mmpack.multimethod.compile.worker")


@frozen
class Job:
    """One unit to lower, in a file (see `unit_file.py`). All paths are absolute.

    environment: variables that the process which does this must have been started with.
    contents: folder with what the unit refers to, by hash, if it came from another machine.
    """

    method: str
    unit: Path
    backend: str
    output: Path
    log: Path
    environment: Mapping[str, str] = field(factory=dict)
    contents: Path | None = None


@frozen
class Answer:
    """What came of a job: the worker's figures, or an error in words.

    unwritten: the error is that a file could not be written or read, as on a full disk.
    memory: bytes that the worker has had resident at most, in all its jobs; 0 if it died.
    own_memory: the same for this job alone; None where that cannot be told.
    seconds: how long the worker was at it; None for its first, which may wait for its imports.
    """

    job: Job
    figures: dict[str, Any]
    error: str | None
    unwritten: bool = False
    memory: int = 0
    own_memory: int | None = None
    seconds: float | None = None


class Worker:
    """A warm process for jobs that want this environment. `log` gets what it prints before its
    first job. expected: backend and options of jobs that are to come, for which it gets ready."""

    def __init__(
        self,
        log: Path,
        environment: Mapping[str, str],
        expected: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.environment = environment
        self._early = log
        self._warm = False
        told = (EXPECT, expected[0], json.dumps(expected[1])) if expected is not None else ()
        with open(log, "ab") as early:
            self._process = subprocess.Popen(
                [*COMMAND, *told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=early,
                text=True,
                # Ctrl-C is for the parent, which kills the group that this begins.
                start_new_session=True,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: Job, threads: int) -> Answer:
        """Have the worker do a job. If it dies on it, that is the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = {
            "method": job.method,
            "unit": str(job.unit),
            "output": str(job.output),
            "log": str(job.log),
            "threads": threads,
            "contents": str(job.contents) if job.contents is not None else None,
        }
        began = time.monotonic()
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            figures = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # a broken pipe, or half an answer
            self.kill()
            code = self._process.wait()
            self._tell_early(job)
            died = f"{job.method}: the compiler process died ({_how(code)})"
            return Answer(job, {}, f"{died}\n  log: {job.log}")
        error = figures.pop("error", None)
        unwritten = bool(figures.pop("unwritten", False))
        memory, own_memory = figures.pop("memory"), figures.pop("own_memory")
        told = f"{error}\n  log: {job.log}" if error else None
        seconds = time.monotonic() - began if self._warm else None
        self._warm = True
        return Answer(job, figures, told, unwritten, memory, own_memory, seconds)

    def _tell_early(self, job: Job) -> None:
        """Put what it printed before its first job, which killed it, where that is looked for."""
        if not self._warm and self._early != job.log:
            with suppress(OSError), open(job.log, "ab") as log:
                log.write(self._early.read_bytes())

    def kill(self) -> None:
        """Kill it with all processes that it started. A dead one keeps its exit code."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let it end: without input it has no more to do."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
