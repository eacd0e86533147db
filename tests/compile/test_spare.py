"""A worker that is begun before there is work for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.compile import process
from mmpack.multimethod.compile import spare as compile_spare
from mmpack.multimethod.compile import worker as compile_worker
from mmpack.multimethod.compile.pool import run_jobs
from mmpack.multimethod.compile.process import Answer, Job, Worker
from mmpack.multimethod.compile.spare import Spare, spare
from mmpack.multimethod.driver import build as driver
from mmpack.multimethod.driver import stages
from mmpack.multimethod.errors import ModelError

from .processes import wait_for_end

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-P", str(FAKE)))


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def make(method: str, environment: dict[str, str] | None = None) -> Job:
        unit = tmp_path / f"{method}.pt2"
        unit.write_text(json.dumps({}))
        output, log = (tmp_path / f"{method}{end}" for end in (".pte", ".log"))
        return Job(method, unit, "portable", output, log, environment or {})

    return make


def pids(answers: list[Answer]) -> set[int]:
    assert all(answer.error is None for answer in answers)
    return {answer.figures["pid"] for answer in answers}


def run(jobs: list[Job], made: Spare, workers: int = 1) -> list[Answer]:
    return run_jobs(jobs, workers, lambda job: None, lambda answer: None, spare=made)


@pytest.mark.usefixtures("fake")
def test_it_does_the_first_job_and_ends_with_the_others(job: Any, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "early.log", {})
    answers = run([job("a"), job("b")], Spare(worker))
    assert pids(answers) == {worker.pid}
    wait_for_end([worker.pid])


@pytest.mark.usefixtures("fake")
def test_another_worker_is_begun_beside_it(job: Any, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "early.log", {})
    place = tmp_path / "meeting"
    place.mkdir()
    jobs = [job(name) for name in "ab"]
    for each in jobs:
        each.unit.write_text(json.dumps({"meet": str(place), "count": 2}))
    found = pids(run(jobs, Spare(worker), workers=2))
    assert worker.pid in found and len(found) == 2


@pytest.mark.usefixtures("fake")
def test_one_of_another_environment_makes_way(job: Any, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "early.log", {"WANTED": "other"})
    answers = run([job("a", {"WANTED": "this"})], Spare(worker))
    assert pids(answers) != {worker.pid}
    wait_for_end([worker.pid])


@pytest.mark.usefixtures("fake")
def test_one_that_has_died_is_replaced(job: Any, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "early.log", {})
    os.kill(worker.pid, signal.SIGKILL)
    worker._process.wait()
    assert pids(run([job("a")], Spare(worker))) != {worker.pid}


@pytest.mark.usefixtures("fake")
def test_nobody_takes_it(tmp_path: Path) -> None:
    with spare({}, tmp_path / "early.log", "portable", {}) as made:
        assert made._worker is not None
        pid = made._worker.pid
    wait_for_end([pid])
    assert made.take({}) is None


def test_what_killed_it_before_its_first_job_is_in_the_log_of_that(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_words = "import sys; sys.stdin.readline(); sys.exit('out of everything')"
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", last_words))
    worker = Worker(tmp_path / "early.log", {})
    (answer,) = run([job("a")], Spare(worker))
    assert answer.error == (f"a: the compiler process died (exit code 1)\n  log: {answer.job.log}")
    assert answer.job.log.read_text() == "out of everything\n"


ECHO = """
import json, sys
sys.stdin.readline()
print(json.dumps({"memory": 0, "own_memory": 0, "told": sys.argv[1:]}))
"""


def test_it_is_told_what_it_is_to_get_ready_for(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", ECHO))
    options = {"precision": "8da4w", "group": 32}
    with spare({}, tmp_path / "early.log", "xnnpack", options) as made:
        (answer,) = run([job("a")], made)
    assert answer.error is None
    flag, backend, told = answer.figures["told"]
    assert (flag, backend) == (compile_worker.EXPECT, "xnnpack") and json.loads(told) == options


BUILD = """
import sys
from unittest.mock import patch
from mmpack.multimethod import build
from mmpack.multimethod.compile import process
from mmpack.multimethod.compile import spare as compile_spare
from mmpack.multimethod.driver import build as driver
begun = []
class Worker(process.Worker):
    def __init__(self, *args):
        super().__init__(*args)
        begun.append(self)
with (
    patch("mmpack.multimethod.compile.spare.Worker", Worker),
    patch("mmpack.multimethod.compile.pool.Worker", Worker),
    patch.object(driver, "cores", lambda: int(sys.argv[3])),
):
    build(sys.argv[1], sys.argv[2], cache=sys.argv[4])
assert not any(worker.alive for worker in begun)
print(len(begun), sum(worker._warm for worker in begun))
"""
MODEL = """
    class Model(nn.Module):
        def forward(self, x):
            return x + 1
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_a_build_begins_one_where_it_has_a_core_for_it(
    project: Any, tmp_path: Path, cores: int
) -> None:
    """Cold, it is the one that lowers; where nothing has changed it is dismissed."""
    project.model(MODEL).spec("methods: {f: {module: '.', target: cpu, inputs: {x: [3]}}}")
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(project.path)]
    command += [str(tmp_path / "out.pte"), str(cores), str(tmp_path / "cache")]
    for expected in ("1 1", "1 0" if cores > 1 else "0 0"):
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert told.split("\n")[-2] == expected


class Fake:
    """A worker that does nothing, and can be asked whether it still is there."""

    alive = True

    def __init__(self, log: Path, environment: dict[str, str], expected: object) -> None:
        self.environment = environment

    def kill(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.alive = False


LAYERS = """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
"""
METHODS = """
    methods:
      f.{i}: {each: {i: 0..%d}, module: "layers.{i}", target: cpu, inputs: {input: [1, 8]}}
"""


def test_it_goes_before_linking_where_no_method_has_to_be_lowered(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though some are missing: they are made from what the cache has."""
    begun: list[Fake] = []

    def begin(*args: Any) -> Fake:
        begun.append(Fake(*args))
        return begun[-1]

    def linked(*args: Any) -> Any:
        assert [worker.alive for worker in begun] == [False]
        return link_parts(*args)

    link_parts = stages.link_parts
    project.model(LAYERS).spec(METHODS % 3)
    project.build(cache=tmp_path / "cache")
    project.spec(METHODS % 5)
    monkeypatch.setattr(driver, "cores", lambda: 2)
    monkeypatch.setattr(compile_spare, "Worker", begin)
    monkeypatch.setattr(stages, "link_parts", linked)
    report = project.build(cache=tmp_path / "cache")
    assert report.compiled == report.rebound == 2


@pytest.mark.parametrize("error", [BlockingIOError("no process"), OSError("no file")])
def test_a_build_does_without_one_where_none_can_be_begun(
    project: Any, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def begin(*args: Any) -> Fake:
        raise error

    project.model(MODEL).spec("methods: {f: {module: '.', target: cpu, inputs: {x: [3]}}}")
    monkeypatch.setattr(driver, "cores", lambda: 2)
    monkeypatch.setattr(compile_spare, "Worker", begin)
    project.build()
    assert project.output.is_file()


@pytest.mark.parametrize("wrong", ["the factory", "a user's Ctrl-C"])
def test_it_does_not_outlive_a_build_that_fails(
    project: Any, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    begun: list[Fake] = []

    def begin(*args: Any) -> Fake:
        begun.append(Fake(*args))
        return begun[-1]

    project.model(MODEL).spec("methods: {f: {module: '.', target: cpu, inputs: {x: [3]}}}")
    monkeypatch.setattr(driver, "cores", lambda: 2)
    monkeypatch.setattr(compile_spare, "Worker", begin)
    if wrong == "the factory":
        project.model("def Model():\n    raise ValueError('no model today')\n")
        with pytest.raises(ModelError):
            project.build()
    else:
        monkeypatch.setattr(stages, "assemble", interrupted)
        with pytest.raises(KeyboardInterrupt):
            project.build()
    assert [worker.alive for worker in begun] == [False]


def interrupted(*args: Any) -> Any:
    raise KeyboardInterrupt
