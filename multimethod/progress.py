"""How a build tells what it is at, to whoever displays it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, Protocol

from attrs import frozen

Stage = Literal["export", "calibrate", "compile", "link", "verify", "compare heads"]
"""What a build goes through. Some come more than once, "calibrate" only where a method is quantized
and "compare heads" only where attention was converted to single heads."""


@frozen
class Status:
    """Where the stage "compile" stands.

    done, running, queued: methods compiled by this build, those that failed among them; at work;
    not begun. cached: methods that need not be. left: seconds until all are compiled, estimated
    from what was measured; None while nothing was. memory, peak: bytes that this process and its
    workers together have in memory, now and at most since the stage began, without what they map
    from files; 0 where that cannot be told.
    """

    done: int
    running: int
    queued: int
    cached: int
    left: float | None
    memory: int
    peak: int


class Progress(Protocol):
    """Is told what a build is at. Calls come from one thread at a time."""

    def stage(self, name: Stage, total: int) -> None:
        """A stage begins; `total` steps."""

    def start(self, method: str) -> None:
        """Work on a method begins."""

    def done(self, method: str, note: str = "") -> None:
        """Work on a method ended ("cached", "like another", "failed", or "")."""

    def status(self, status: Status) -> None:
        """Where compiling stands: told before each `start` and `done`, and now and then."""

    def explain(self, method: str, reasons: Sequence[str]) -> None:
        """Why a method is compiled, if that was asked for; no reasons: it is in the cache."""


class Silent:
    """A display that displays nothing."""

    def stage(self, name: Stage, total: int) -> None: ...

    def start(self, method: str) -> None: ...

    def done(self, method: str, note: str = "") -> None: ...

    def status(self, status: Status) -> None: ...

    def explain(self, method: str, reasons: Sequence[str]) -> None: ...


class Stopwatch:
    """Passes on what it is told, and keeps how long each stage took: `seconds`, by stage; what is
    before the first is `model`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage, self._began = "model", time.monotonic()
        self.seconds: dict[str, float] = {}

    def stage(self, name: Stage, total: int) -> None:
        self._turn(name)
        self._progress.stage(name, total)

    def start(self, method: str) -> None:
        self._progress.start(method)

    def done(self, method: str, note: str = "") -> None:
        self._progress.done(method, note)

    def status(self, status: Status) -> None:
        self._progress.status(status)

    def explain(self, method: str, reasons: Sequence[str]) -> None:
        self._progress.explain(method, reasons)

    def stop(self) -> dict[str, float]:
        """The last stage is over. Returns `seconds`."""
        self._turn("")
        return self.seconds

    def _turn(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._began
        self._stage, self._began = name, now
