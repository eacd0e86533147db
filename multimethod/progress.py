"""How a build tells what it is at, to whoever displays it."""

from __future__ import annotations

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
        """Work on a method ended ("cached", "failed", or "")."""


class Silent:
    """A display that displays nothing."""

    def stage(self, name: Stage, total: int) -> None: ...

    def start(self, method: str) -> None: ...

    def done(self, method: str, note: str = "") -> None: ...
