"""How long the stages of a build took."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmpack.multimethod import progress
from mmpack.multimethod.progress import Silent, Status, Stopwatch


def test_seconds_by_stage_one_of_them_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 8.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    watch = Stopwatch(Silent())
    watch.stage("link", 1)
    watch.stage("verify", 1)
    watch.stage("link", 1)
    assert watch.stop() == {"model": 1.0, "link": 2.0 + 1.0, "verify": 4.0}


def test_what_it_is_told_is_passed_on() -> None:
    told: list[tuple[str, ...]] = []

    class Listener(Silent):
        def stage(self, name: str, total: int) -> None:
            told.append(("stage", name, str(total)))

        def start(self, method: str) -> None:
            told.append(("start", method))

        def done(self, method: str, note: str = "") -> None:
            told.append(("done", method, note))

        def status(self, status: Status) -> None:
            told.append(("status", str(status.queued)))

        def explain(self, method: str, reasons: Sequence[str]) -> None:
            told.append(("explain", method, *reasons))

    watch = Stopwatch(Listener())
    watch.stage("export", 2)
    watch.start("a")
    watch.done("a", "cached")
    watch.status(Status(1, 2, 3, 4, None, 5, 6))
    watch.explain("a", ["one", "two"])
    assert told == [
        ("stage", "export", "2"),
        ("start", "a"),
        ("done", "a", "cached"),
        ("status", "3"),
        ("explain", "a", "one", "two"),
    ]
