"""The progress of a build, on a terminal or in a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import get_args

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from mmpack.multimethod.progress import Stage

LONGEST = max(map(len, get_args(Stage)))


class Display:
    """Shows stages as bars, with the methods at work beside them; where nobody watches, one plain
    line per stage and finished method. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn(f"{{task.description:<{LONGEST}}}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._stage = ""
        self._task: TaskID | None = None
        self._total = 0
        self._count = 0
        self._running: dict[str, float] = {}

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish_stage()
        self._bars.stop()

    def stage(self, name: Stage, total: int) -> None:
        self._finish_stage()
        self._stage, self._total, self._count = name, total, 0
        self._running.clear()
        self._task = self._bars.add_task(name, total=total, note="")

    def start(self, method: str) -> None:
        self._running[method] = time.monotonic()
        self._show()

    def done(self, method: str, note: str = "") -> None:
        began = self._running.pop(method, None)
        self._count += 1
        if self._task is not None:
            self._bars.advance(self._task)
        self._show()
        if not self._console.is_terminal and method:
            took = note or (f"{time.monotonic() - began:.1f} s" if began is not None else "")
            line = f"{self._stage} {self._count}/{self._total} {method}"
            click.echo(line + (f" ({took})" if took else ""))

    def _show(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, note=", ".join(self._running))

    def _finish_stage(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, note="")
