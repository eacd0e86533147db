"""How a build tells what it is at, to whoever displays it."""

from __future__ import annotations

import time
from typing import Literal, Protocol

Stage = Literal["export", "calibrate", "compile", "link", "verify", "compare heads"]
"""What a build goes through. Some come more than once, "calibrate" only where a method is quantized
and "compare heads" only where attention was converted to single heads."""


class Progress(Protocol):
    """Is told what a build is at. Calls come from one thread at a time."""

    def stage(self, name: Stage, total: int) -> None:
        """A stage begins; `total` steps."""

    def start(self, method: str) -> None:
        """Work on a method begins."""

    def done(self, method: str, note: str = "") -> None:
        """Work on a method ended ("cached", "like another", "failed", or "")."""


class Silent:
    """A display that displays nothing."""

    def stage(self, name: Stage, total: int) -> None: ...

    def start(self, method: str) -> None: ...

    def done(self, method: str, note: str = "") -> None: ...


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

    def stop(self) -> dict[str, float]:
        """The last stage is over. Returns `seconds`."""
        self._turn("")
        return self.seconds

    def _turn(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._began
        self._stage, self._began = name, now
