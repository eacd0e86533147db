"""A worker begun before there is work for it: it imports torch and ExecuTorch's compiler and warms
up, which takes some seconds, while its parent makes the model and exports the first methods. It has
the environment and the working directory that the parent had then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmpack.multimethod.compile.process import Worker


class Spare:
    """At most one worker, for whoever asks first for one with this environment."""

    def __init__(self, worker: Worker | None = None) -> None:
        self._worker = worker

    def take(self, environment: Mapping[str, str]) -> Worker | None:
        """The worker, which is then the caller's to close; None if there is none such."""
        worker = self._worker
        if worker is None or worker.environment != environment or not worker.alive:
            return None
        self._worker = None
        return worker

    def dismiss(self) -> None:
        """Have it end, if nobody took it."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.close()
            self._worker = None


@contextmanager
def spare(
    environment: Mapping[str, str], log: Path, backend: str, options: Mapping[str, Any]
) -> Iterator[Spare]:
    """A worker that is there as long as nobody takes it, for jobs of a backend with these options.
    `log` gets what it prints before its first job."""
    made = Spare(Worker(log, environment, (backend, options)))
    try:
        yield made
    finally:
        made.dismiss()
