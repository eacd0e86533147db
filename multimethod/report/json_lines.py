"""The progress of a build and what it made, a JSON object a line: for programs that watch.

    {"event": "stage", "stage": "compile", "total": 24}
    {"event": "start", "stage": "compile", "method": "lm_head.one"}
    {"event": "done", "stage": "compile", "method": "lm_head.one", "count": 7, "seconds": 1.8}
    {"event": "built", "output": "adder.pte", "size": 1871008, "methods": [...], ...}

In the stage "compile", `start` and `done` tell besides where it stands:

    "status": {"done": 3, "running": 2, "queued": 9, "cached": 10, "seconds_left": 21.5,
               "memory": 1320000000, "peak": 1410000000}

`done` are those that this build compiled; `seconds_left` is null while nothing was measured; bytes
are those of this process and its workers together, without files that they map. `--why` adds

    {"event": "why", "stage": "compile", "method": "lm_head.one", "cached": false, "reasons": [...]}

A method that was in the cache is "done" with `"note": "cached"` and without a "start", one that was
made from others of its structure with `"note": "like another"`, one that failed with `"note":
"failed"`. More keys may come to be.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mmpack.multimethod.progress import Stage, Status

if TYPE_CHECKING:
    from mmpack.multimethod.driver.records import BuildReport


class JsonLines:
    """Writes a line for each thing that it is told, with `write`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._stage = ""
        self._count = 0
        self._began: dict[str, float] = {}
        self._status: dict[str, Any] = {}

    def stage(self, name: Stage, total: int) -> None:
        self._stage, self._count = name, 0
        self._began.clear()
        self._status = {}
        self._tell("stage", stage=name, total=total)

    def start(self, method: str) -> None:
        self._began[method] = time.monotonic()
        self._tell("start", stage=self._stage, method=method, **self._status)

    def done(self, method: str, note: str = "") -> None:
        self._count += 1
        began = self._began.pop(method, None)
        told: dict[str, Any] = {"method": method} if method else {}
        told["count"] = self._count
        if note:
            told["note"] = note
        elif began is not None:
            told["seconds"] = round(time.monotonic() - began, 3)
        self._tell("done", stage=self._stage, **told, **self._status)

    def status(self, status: Status) -> None:
        told = attrs.asdict(status)
        left = told.pop("left")
        told["seconds_left"] = round(left, 1) if left is not None else None
        self._status = {"status": told}

    def explain(self, method: str, reasons: Sequence[str]) -> None:
        cached = not reasons
        self._tell("why", stage=self._stage, method=method, cached=cached, reasons=list(reasons))

    def built(self, report: BuildReport) -> None:
        """What the build made. Bytes, seconds, dB."""
        own, worker = report.memory
        self._tell(
            "built",
            output=str(report.output),
            size=report.link.size,
            data=None if report.link.data is None else str(report.link.data[0]),
            data_size=None if report.link.data is None else report.link.data[1],
            saved=report.link.saved,
            compiled=report.compiled,
            rebound=report.rebound,
            methods=[
                {
                    "method": m.signature.method,
                    "target": m.target,
                    "operators": m.operators,
                    "delegated": m.delegated,
                    "size": m.size,
                    "cached": m.cached,
                    "error": _number(m.error),
                    "sqnr": _number(m.sqnr),
                }
                for m in report.methods
            ],
            flows=[
                {
                    "flow": flow.name.removeprefix("flow "),
                    "compared": flow.compared,
                    "error": _number(flow.error),
                    "sqnr": _number(flow.sqnr),
                }
                for flow in report.flows
            ],
            seconds={stage: round(took, 3) for stage, took in report.seconds.items()},
            memory={"here": own, "worker": worker, "together": report.together},
        )

    def _tell(self, event: str, **more: Any) -> None:
        self._write(json.dumps({"event": event, **more}))


def _number(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
