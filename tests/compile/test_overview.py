"""Compiling as a whole: counts, time left, and what may start in the memory that is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.compile import overview
from mmpack.multimethod.compile.costs import BASE, FACTOR, Cost
from mmpack.multimethod.compile.overview import Overview
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.progress import Silent, Status

MB = 10**6
OWN = 300 * MB


class Listener(Silent):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def status(self, status: Status) -> None:
        self.told.append(status)

    def start(self, method: str) -> None:
        self.told.append(f"start {method}")

    def done(self, method: str, note: str = "") -> None:
        self.told.append(f"done {method} {note}".strip())


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What processes have, by their ids: this one, and those that a test adds."""
    given = {os.getpid(): OWN}
    monkeypatch.setattr(overview, "held", lambda pid: given.get(pid, 0))
    return given


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(overview.time, "monotonic", lambda: now[0])
    return now


def job(method: str, backend: str = "portable") -> Job:
    here = Path(method)
    return Job(method, here, backend, {}, here, here)


def answer(method: str, seconds: float | None, error: str | None = None) -> Answer:
    return Answer(job(method), {}, error, seconds=seconds, own_memory=500 * MB)


SPEC = """
methods:
  a: {module: ".", target: plain, inputs: {x: [2]}}
  b: {module: ".", target: plain, inputs: {x: [2]}}
  c: {module: ".", target: cpu, inputs: {x: [2]}}
  d: {module: ".", target: plain, inputs: {x: [2]}}
"""


@pytest.fixture
def units(project: Any) -> Any:
    project.model("class Model(nn.Module):\n    def forward(self, x):\n        return x + 1\n")
    return project.spec(SPEC).units()


def test_what_is_told(units: Any, memory: dict[int, int], clock: list[float]) -> None:
    listener = Listener()
    seen = Overview(listener, 2, None, {})
    seen.plan({name: unit for name, unit in units.items() if name != "d"}, cached=1)
    seen.cached("d")
    seen.started(job("a"))
    memory[7] = 500 * MB
    seen.tick([7])
    seen.started(job("b"))
    memory[7] = 200 * MB
    clock[0] += 2
    seen.finished(answer("a", 2.0))
    seen.started(job("c", backend="xnnpack"))
    clock[0] += 1
    seen.finished(answer("b", None, error="it failed"))
    clock[0] += 3
    seen.finished(answer("c", 4.0))
    most = OWN + 500 * MB
    assert listener.told == [
        Status(0, 0, 3, 1, None, OWN, OWN),
        "done d cached",
        Status(0, 1, 2, 1, None, OWN, OWN),
        "start a",
        Status(0, 1, 2, 1, None, most, most),
        Status(0, 2, 1, 1, None, most, most),
        "start b",
        # b has gone as long as a took; c is expected to take as long.
        Status(1, 1, 1, 1, 2.0, OWN + 200 * MB, most),
        "done a",
        Status(1, 2, 0, 1, 2.0, OWN + 200 * MB, most),
        "start c",
        Status(2, 1, 0, 1, 1.0, OWN + 200 * MB, most),
        "done b failed",
        Status(3, 0, 0, 1, 0.0, OWN + 200 * MB, most),
        "done c",
    ]
    assert seen.peak == most


@pytest.mark.parametrize(("jobs", "left"), [(1, 12.0), (2, 6.0), (3, 6.0)])
def test_the_time_left_is_known_at_once_from_earlier_builds(
    units: Any, memory: dict[int, int], jobs: int, left: float
) -> None:
    """As many seconds as there are for each worker, but no fewer than the longest takes."""
    listener = Listener()
    earlier = {name: Cost("", 0, took) for name, took in {"a": 1.0, "b": 2.0, "c": 6.0}.items()}
    seen = Overview(listener, jobs, None, earlier)
    seen.plan(units)  # "d" takes as long as the others do: 3 s
    seen.tick([])
    assert listener.told[-1].left == left


class TestBound:
    """Of the units, "large" has weights of 100 MB, the others none."""

    NEEDED = BASE + int(FACTOR * 100 * MB)

    @pytest.fixture
    def bounded(
        self, units: Any, memory: dict[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[int | None], Overview]:
        large = units["d"]
        sizes = {id(large.module): 100 * MB}
        monkeypatch.setattr(overview, "weight_bytes", lambda module: sizes.get(id(module), 0))

        def make(bound: int | None) -> Overview:
            made = Overview(Silent(), 2, bound, {})
            made.plan({**{name: units[name] for name in "abc"}, "large": large})
            return made

        return make

    @pytest.mark.parametrize(("more", "fits"), [(0, True), (-1, False)])
    def test_jobs_run_at_once_where_all_fit(
        self, bounded: Callable[[int | None], Overview], more: int, fits: bool
    ) -> None:
        seen = bounded(OWN + BASE + self.NEEDED + more)
        small, large = job("a"), job("large")
        assert seen.fits(large, [(small, 7)]) is fits
        assert seen.fits(small, [(large, 7)]) is fits

    def test_a_job_that_takes_more_than_expected_counts_as_it_is(
        self, bounded: Callable[[int | None], Overview], memory: dict[int, int]
    ) -> None:
        seen = bounded(OWN + 2 * BASE)
        assert seen.fits(job("b"), [(job("a"), 7)])
        memory[7] = BASE + 1
        assert not seen.fits(job("b"), [(job("a"), 7)])

    def test_this_process_counts(
        self, bounded: Callable[[int | None], Overview], memory: dict[int, int]
    ) -> None:
        seen = bounded(OWN + 2 * BASE)
        memory[os.getpid()] += 1
        assert not seen.fits(job("b"), [(job("a"), 7)])

    def test_what_workers_took_corrects_what_is_expected(
        self, bounded: Callable[[int | None], Overview]
    ) -> None:
        seen = bounded(OWN + 2 * BASE - 100 * MB)
        assert not seen.fits(job("b"), [(job("c"), 7)])
        for name in ("a", "c"):  # of both targets
            seen.started(job(name))
            seen.finished(Answer(job(name), {}, None, own_memory=400 * MB))
        assert seen.fits(job("b"), [(job("c"), 7)])

    def test_without_a_bound_everything_fits(
        self, bounded: Callable[[int | None], Overview], memory: dict[int, int]
    ) -> None:
        memory[7] = 10**15
        assert bounded(None).fits(job("large"), [(job("a"), 7)])


MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.small = nn.Linear(2, 2)
        self.large = nn.Linear(1000, 1000)
    def forward(self, x):
        return self.large(x) + self.small(x[..., :2]).sum()
"""
LARGE = """
methods:
  small: {module: small, target: plain, inputs: {input: [1, 2]}}
  large: {module: large, target: plain, inputs: {input: [1, 1000]}}
"""


def test_a_method_that_never_fits_is_an_error_before_anything_is_compiled(
    project: Any, tmp_path: Path, memory: dict[int, int]
) -> None:
    project.model(MODEL).spec(LARGE)
    cache = tmp_path / "cache"
    bound = OWN + BASE + 2 * MB
    with pytest.raises(CompileError) as raised:
        project.build(memory=bound, cache=cache)
    said = str(raised.value)
    assert f"{project.path}:7:3: methods.large: compiling it is expected to take 0.62 GB, " in said
    assert "beside the 0.30 GB of this process, and 0.90 GB are allowed in all: " in said
    assert "allow 0.92 GB, or make several methods of it" in said
    assert not list((cache / "objects").iterdir()) and not project.output.exists()
    with pytest.raises(CompileError, match=r"take 0\.62 GB \(1 other too\)"):
        project.build(memory=1, cache=cache)
    assert project.build(memory=bound + 11 * MB, cache=cache).compiled == 2
    assert project.build(memory=1, cache=cache).compiled == 0  # what is cached takes nothing
