"""Worker processes: what they print, how they die, and how they end. Nothing is lowered here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.compile import process
from mmpack.multimethod.compile.pool import Running, run_jobs
from mmpack.multimethod.compile.process import Answer, Job

from .processes import wait_for_end, wait_for_pids

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-P", str(FAKE)))


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def make(method: str, **options: Any) -> Job:
        unit = tmp_path / f"{method}.pt2"
        unit.write_text(json.dumps(options))
        return Job(
            method=method,
            unit=unit,
            backend="portable",
            output=tmp_path / f"{method}.pte",
            log=tmp_path / f"{method}.log",
        )

    return make


def run(jobs: list[Job], workers: int = 1, **options: Any) -> tuple[list[Answer], list[str]]:
    """The answers, and what was reported in which order."""
    told: list[str] = []
    answers = run_jobs(
        jobs,
        workers,
        lambda job: told.append(f"start {job.method}"),
        lambda answer: told.append(f"{'failed' if answer.error else 'done'} {answer.job.method}"),
        **options,
    )
    return answers, told


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_answers_come_in_the_order_of_the_jobs(job: Any, workers: int) -> None:
    answers, told = run([job(name) for name in "abcd"], workers)
    assert [a.job.method for a in answers] == list("abcd")
    assert all(a.error is None and a.figures["operators"] == 1 for a in answers)
    assert sorted(told) == [f"{kind} {name}" for kind in ("done", "start") for name in "abcd"]
    assert len({a.figures["pid"] for a in answers}) <= workers
    wait_for_end([a.figures["pid"] for a in answers])


def test_no_jobs_start_no_worker() -> None:
    assert run([]) == ([], [])


def test_a_worker_is_used_again(job: Any) -> None:
    answers, told = run([job("a"), job("b", fail=True), job("c")])
    assert answers[0].figures["pid"] == answers[2].figures["pid"]
    assert told == ["start a", "done a", "start b", "failed b", "start c", "done c"]
    assert answers[1].error == f"b: it failed\n  log: {answers[1].job.log}"


def test_a_worker_tells_its_own_memory(job: Any) -> None:
    parents = bytearray(b"1") * 400_000_000  # no part of it
    answers, _ = run([job("a"), job("b", take=300_000_000), job("c"), job("d", die="kill")])
    before, taken, after, died = (answer.memory for answer in answers)
    assert 0 < before < 100_000_000 and 300_000_000 < taken == after < len(parents)
    assert died == 0
    own = [answer.own_memory for answer in answers]
    assert own[3] is None and own[1] == taken
    assert own[0] == before and own[2] is not None and own[2] < 100_000_000


def test_a_worker_is_timed_once_it_is_warm(job: Any) -> None:
    answers, _ = run([job("a"), job("b"), job("c", die="kill"), job("d"), job("e")])
    assert [answer.seconds is not None for answer in answers] == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("cores", "workers", "each"), [(8, 1, 8), (8, 3, 2), (2, 3, 1), (4, 9, 1), (1, 1, 1)]
)
def test_workers_share_the_cores(
    job: Any, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, each: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    answers, _ = run([job(name) for name in "abc"], workers)
    # Three jobs never have more than three workers.
    assert {answer.figures["threads"] for answer in answers} == {each}


def most_at_once(told: list[str]) -> int:
    running = most = 0
    for event in told:
        running += 1 if event.startswith("start ") else -1
        most = max(most, running)
    return most


class TestRoom:
    """Jobs that begin only where there is room for them."""

    def test_two_that_fit_run_at_once(self, job: Any, tmp_path: Path) -> None:
        place = tmp_path / "meeting"
        place.mkdir()
        jobs = [job(name, meet=str(place), count=2) for name in "ab"]
        _, told = run(jobs, 2, fits=lambda job, running: len(running) < 2)
        assert most_at_once(told) == 2 and sorted(os.listdir(place)) == ["a", "b"]

    def test_two_that_do_not_never_do_and_the_other_worker_is_not_started(self, job: Any) -> None:
        asked: list[tuple[str, list[str]]] = []

        def fits(job: Job, running: Running) -> bool:
            asked.append((job.method, [other.method for other, _ in running]))
            return False

        answers, told = run([job(name) for name in "abcdef"], 3, fits=fits)
        assert most_at_once(told) == 1 and all(answer.error is None for answer in answers)
        assert len({answer.figures["pid"] for answer in answers}) == 1
        assert asked and all(len(running) == 1 for _, running in asked)

    def test_a_small_one_goes_before_a_large_one_that_does_not_fit(
        self, job: Any, tmp_path: Path
    ) -> None:
        place = tmp_path / "meeting"
        place.mkdir()
        jobs = [job(name, meet=str(place), count=2) for name in ("a", "large", "small")]

        def fits(job: Job, running: Running) -> bool:
            return "large" not in {job.method, *(other.method for other, _ in running)}

        _, told = run(jobs, 2, fits=fits)
        assert set(told[:2]) == {"start a", "start small"}
        assert told[-2:] == ["start large", "done large"]

    def test_it_is_told_the_processes_at_work(self, job: Any, tmp_path: Path) -> None:
        place = tmp_path / "meeting"
        place.mkdir()
        seen: list[list[int]] = []

        def fits(job: Job, running: Running) -> bool:
            seen.append([pid for _, pid in running])
            return job.method == "b"

        ticked: list[int] = []
        jobs = [job(name, meet=str(place), count=2) for name in "ab"]
        answers, _ = run([*jobs, job("c")], 2, fits=fits, tick=ticked.extend)
        pids = {answer.figures["pid"] for answer in answers}
        assert {pid for pids in seen for pid in pids} <= {*pids, 0} and set(ticked) <= pids

    def test_an_exception_wakes_those_that_wait(self, job: Any) -> None:
        def finished(answer: Answer) -> None:
            raise OSError("the disk is full")

        with pytest.raises(OSError, match="the disk is full"):
            run_jobs(
                [job(name) for name in "abc"],
                3,
                lambda job: None,
                finished,
                fits=lambda job, running: False,
            )
        assert not any("serve" in thread.name for thread in threading.enumerate())

    def test_an_exception_of_a_tick_stops_everything(self, job: Any) -> None:
        def tick(pids: Any) -> None:
            raise OSError("nobody reads")

        with pytest.raises(OSError, match="nobody reads"):
            run([job("a", hang=True)], fits=lambda job, running: True, tick=tick)


@pytest.mark.parametrize(
    ("how", "says"), [("exit", "exit code 7"), ("kill", "SIGKILL"), ("half", "exit code 0")]
)
def test_a_worker_that_dies_takes_only_its_own_method_with_it(
    job: Any, how: str, says: str
) -> None:
    # The worker's answers go to the first descriptor that it opened.
    options = {"half": "3"} if how == "half" else {"die": how}
    answers, told = run([job("a"), job("b", **options), job("c")])
    assert [a.error is None for a in answers] == [True, False, True]
    assert answers[1].error == (
        f"b: the compiler process died ({says})\n  log: {answers[1].job.log}"
    )
    assert answers[0].figures["pid"] != answers[2].figures["pid"]
    assert told == ["start a", "done a", "start b", "failed b", "start c", "done c"]


def test_all_that_a_job_prints_goes_to_its_own_log(job: Any, capfd: Any) -> None:
    jobs = [job("a"), job("b", noise=True), job("c", noise=True)]
    jobs[1].log.write_text("of an earlier attempt\n")
    run(jobs)
    assert capfd.readouterr() == ("", "")
    for made in jobs[1:]:
        assert sorted(made.log.read_text().splitlines()) == [
            "from C",
            "from Python",
            "from a child",
            "to stderr",
            "to the descriptor",
        ]
    assert jobs[0].log.read_text() == ""


def test_a_worker_that_cannot_start_says_why_in_the_log(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "raise ImportError('no torch')"))
    (answer,), _ = run([job("a")])
    assert answer.error is not None and "died (exit code 1)" in answer.error
    assert "ImportError: no torch" in answer.job.log.read_text()


def test_a_log_that_cannot_be_written_fails_that_method(job: Any, tmp_path: Path) -> None:
    made = job("b")
    made.log.mkdir()
    answers, _ = run([job("a"), made])
    assert answers[0].error is None
    assert answers[1].error == f"b: its log cannot be written: Is a directory\n  log: {made.log}"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_the_caller_stops_everything(
    job: Any, tmp_path: Path, workers: int
) -> None:
    hanging = tmp_path / "pids"
    jobs = [job("a"), job("b", hang=True, pids=str(hanging)), job("c")]

    def finished(answer: Answer) -> None:
        if workers == 2:
            wait_for_pids(hanging)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run_jobs(jobs, workers, lambda job: None, finished)
    if workers == 2:
        wait_for_end(wait_for_pids(hanging))
    assert not any(thread.name.startswith("Thread-serve") for thread in threading.enumerate())


def test_ctrl_c_between_the_starts_of_two_workers_ends_the_first(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "pids"
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if begun:
            wait_for_pids(hanging)
            raise KeyboardInterrupt
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    jobs = [job(name, hang=True, child=True, pids=str(hanging)) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, lambda job: None, lambda answer: None)
    wait_for_end(wait_for_pids(hanging))
    assert not begun[0].is_alive()


SCRIPT = """
import json
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
from mmpack.multimethod.compile import process
from mmpack.multimethod.compile.pool import run_jobs
from mmpack.multimethod.compile.process import Job
process.COMMAND = (sys.executable, "-P", sys.argv[1])
folder = Path(sys.argv[2])
jobs = []
for n in "ab":
    unit = folder / f"{n}.pt2"
    unit.write_text(json.dumps({"hang": True, "child": True, "pids": str(folder / n)}))
    jobs.append(Job(n, unit, "portable", folder / f"{n}.pte", folder / f"{n}.log"))
run_jobs(jobs, 2, lambda job: None, lambda answer: None)
"""


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_a_parent_that_is_stopped(tmp_path: Path, signal_: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(FAKE), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    found = [wait_for_pids(tmp_path / name) for name in "ab"]
    parent.send_signal(signal_)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode in (-signal_, 130)
    assert (b"KeyboardInterrupt" in output) == (signal_ == signal.SIGINT)
    wait_for_end([pids[0] for pids in found])
    if signal_ == signal.SIGINT:  # then what the workers started ends too
        wait_for_end([pids[1] for pids in found])
    for _, child in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
