"""How a build tells what it is at, to whoever displays it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told what a build is at. Calls come from one thread at a time."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins: "export", "compile", "link" or "verify"; `total` steps."""

    def start(self, method: str) -> None:
        """Work on a method begins."""

    def done(self, method: str, note: str = "") -> None:
        """Work on a method ended ("cached", "failed", or "")."""


class Silent:
    """A display that displays nothing."""

    def stage(self, name: str, total: int) -> None: ...

    def start(self, method: str) -> None: ...

    def done(self, method: str, note: str = "") -> None: ...
