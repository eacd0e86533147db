"""The progress of a build, on a terminal or in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import get_args

import click
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from mmpack.multimethod.progress import Stage, Status
from mmpack.multimethod.report.tables import size

LONGEST = max(map(len, get_args(Stage)))


class _Bars(Progress):
    """Bars with a line below them."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.line:
            yield Text(self.line, no_wrap=True, overflow="ellipsis")


class Display:
    """Shows stages as bars, with the methods at work beside them and, while methods are compiled, a
    line that counts them, with the time left and the memory; where nobody watches, one plain line
    per stage and finished method. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _Bars(
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

    def status(self, status: Status) -> None:
        self._bars.line = status_line(status)

    def explain(self, method: str, reasons: Sequence[str]) -> None:
        for line in why_lines(method, reasons):
            if self._console.is_terminal:
                self._console.print(Text(line))
            else:
                click.echo(line)

    def _show(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, note=", ".join(self._running))

    def _finish_stage(self) -> None:
        self._bars.line = ""
        if self._task is not None:
            self._bars.update(self._task, note="")


def status_line(status: Status) -> str:
    """`3 done, 2 running, 9 queued, 10 cached; 0:21 left; memory 1.3 GB, at most 1.4 GB`"""
    counts = ("done", "running", "queued", "cached")
    parts = [", ".join(f"{getattr(status, name)} {name}" for name in counts)]
    if status.left is not None and status.running + status.queued:
        minutes, seconds = divmod(round(status.left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        parts.append(f"{clock} left")
    if status.peak:
        parts.append(f"memory {size(status.memory)}, at most {size(status.peak)}")
    return "; ".join(parts)


def why_lines(method: str, reasons: Sequence[str]) -> list[str]:
    """Why a method is compiled, for a reader."""
    if not reasons:
        return [f"why {method}: it is in the cache"]
    return [f"why {method}: it is compiled, since", *(f"  {reason}" for reason in reasons)]
