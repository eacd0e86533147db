"""Units on a Dask cluster: what is sent, who is lost, what is said. Nothing is lowered here: the
cluster's workers are in this process, their compilers are `fake_worker.py`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import LocalCluster

from mmpack.multimethod.compile import cluster, cluster_worker, process
from mmpack.multimethod.compile.carried import Code
from mmpack.multimethod.compile.cluster import connected
from mmpack.multimethod.compile.contents import Contents
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.compile.unit_file import UnitFile
from mmpack.multimethod.errors import ClusterError
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.signature import Signature

from .processes import wait_for, wait_for_end, wait_for_pids

FAKE = Path(__file__).with_name("fake_worker.py")
NO_CODE = Code()
WEIGHTS = {"w": torch.arange(100.0), "b": torch.arange(7), "none": torch.empty(0)}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Dask tells at length of workers that are lost."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("distributed").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-P", str(FAKE)))
    monkeypatch.setattr(cluster, "POLL", 0.05)
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)


Start = Callable[[int], LocalCluster]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a cluster with so many workers."""
    started: list[LocalCluster] = []

    def make(workers: int) -> LocalCluster:
        made = LocalCluster(
            n_workers=workers,
            processes=False,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path),
        )
        started.append(made)
        return made

    yield make
    for made in started:
        for worker in made.workers.values():
            cluster_worker.room(worker).close()
        with contextlib.suppress(TimeoutError):  # of one without a scheduler
            made.close(timeout=2)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    contents = Contents()

    def make(method: str, code: Code = NO_CODE, **orders: Any) -> Job:
        unit = tmp_path / f"{method}.pt2"
        weights = {**WEIGHTS, "own": torch.full((3,), float(ord(method)))}
        held = contents.hold(method, weights, tmp_path / f"{method}.safetensors")
        signature = Signature(method, (), (), {})
        about = UnitFile(method, "portable", {}, "planned", signature, None, code, held)
        with zipfile.ZipFile(unit, "w") as archive:
            archive.writestr("unit/extra/unit.json", json.dumps(PLAIN.unstructure(about)))
            archive.writestr("fake.json", json.dumps(orders))
        output, log = tmp_path / f"{method}.pte", tmp_path / f"{method}.log"
        return Job(method, unit, "portable", output, log)

    return make


def run(address: str, jobs: list[Job]) -> tuple[list[Answer], list[str]]:
    """The answers, and what was reported in which order."""
    told: list[str] = []
    with connected(address) as there:
        answers = there.run_jobs(
            jobs,
            lambda job: told.append(f"start {job.method}"),
            lambda a: told.append(f"{'failed' if a.error else 'done'} {a.job.method}"),
        )
    return answers, told


def rooms(made: LocalCluster) -> list[cluster_worker.Room]:
    return [cluster_worker.room(worker) for worker in made.workers.values()]


def test_answers_objects_and_logs_come_back(start: Start, job: Any) -> None:
    jobs = [job(name, noise=name == "b") for name in "abcd"]
    made = start(2)
    answers, told = run(made.scheduler_address, jobs)
    assert [a.job for a in answers] == jobs and [a.error for a in answers] == [None] * 4
    assert sorted(told) == [f"{kind} {name}" for kind in ("done", "start") for name in "abcd"]
    assert len({a.figures["pid"] for a in answers}) == 2  # each stays warm
    assert all(a.figures["operators"] == 1 and a.memory > 0 for a in answers)
    for each in jobs:
        assert each.output.read_text() == f"object of {each.method}"
    assert "from C\n" in jobs[1].log.read_text() and jobs[0].log.read_text() == ""
    for room in rooms(made):  # contents are kept, units, objects and logs are not
        assert not [path for path in room.folder.iterdir() if path.suffix]


def test_the_compiler_stays_for_the_next_build(start: Start, job: Any) -> None:
    """Unless that brings other code along: an operator is registered once."""
    made = start(1)
    codes = [Code(), *(Code((("/p", "/p/m.py"),), (), "/p", {"m.py": t}) for t in "xxy"), Code()]
    pids = []
    for number, code in enumerate(codes):
        (answer,), _ = run(made.scheduler_address, [job("abcde"[number], code)])
        pids.append(answer.figures["pid"])
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4]


def test_contents_arrive_whole_and_once(
    start: Start, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PIECE", 64)
    sent: list[tuple[str, int]] = []
    real = cluster.Cluster.call

    def call(self: Any, address: str, function: Any, *args: Any) -> Any:
        if function is cluster_worker.take:
            sent.extend((key, len(part)) for key, _, part in args[0])
        return real(self, address, function, *args)

    monkeypatch.setattr(cluster.Cluster, "call", call)
    made = start(1)
    jobs = [job("a"), job("b")]
    run(made.scheduler_address, jobs)
    assert max(size for _, size in sent) <= 64
    (room,) = rooms(made)
    expected = [t.view(torch.uint8).numpy().tobytes() for t in WEIGHTS.values()]
    expected += [torch.full((3,), float(ord(n))).view(torch.uint8).numpy().tobytes() for n in "ab"]
    assert sorted(path.read_bytes() for path in room.folder.iterdir()) == sorted(expected)
    units = sum(each.unit.stat().st_size for each in jobs)
    assert sum(size for _, size in sent) == units + sum(map(len, expected))
    sent.clear()
    run(made.scheduler_address, jobs[:1])
    assert sum(size for _, size in sent) == jobs[0].unit.stat().st_size


@pytest.mark.parametrize(("die", "how"), [("exit", "exit code 7"), ("kill", "SIGKILL")])
def test_a_compiler_that_dies_takes_only_its_own_unit_with_it(
    start: Start, job: Any, die: str, how: str
) -> None:
    """And is not tried again: that is told of the local build in the same words."""
    made = start(1)
    (address,) = (worker.address for worker in made.workers.values())
    jobs = [job("a"), job("b", die=die), job("c"), job("d", fail=True)]
    answers, told = run(made.scheduler_address, jobs)
    assert [a.error is None for a in answers] == [True, False, True, False]
    place = f"\n  on: {address}\n  log: "
    assert answers[1].error == f"b: the compiler process died ({how}){place}{jobs[1].log}"
    assert answers[3].error == f"d: it failed{place}{jobs[3].log}"
    expected = "start a, done a, start b, failed b, start c, done c, start d, failed d"
    assert told == expected.split(", ")


def lose(made: LocalCluster, pid: int) -> None:
    """Have the worker whose compiler has that process id leave the cluster."""
    (worker,) = (
        worker
        for worker in made.workers.values()
        if (compiler := cluster_worker.room(worker)._compiler) and compiler._process.pid == pid
    )
    made.sync(worker.close, nanny=False, executor_wait=False)
    cluster_worker.room(worker)._compiler.kill()  # type: ignore[union-attr]


def test_the_unit_of_a_worker_that_is_lost_goes_to_another(
    start: Start, job: Any, tmp_path: Path
) -> None:
    made = start(3)
    pids = tmp_path / "pids"
    jobs = [job(name, **({"hang_once": str(pids)} if name == "b" else {})) for name in "abcdef"]

    def end() -> None:
        lose(made, wait_for_pids(pids)[0])

    ending = threading.Thread(target=end)
    ending.start()
    answers, told = run(made.scheduler_address, jobs)
    ending.join()
    assert [a.error for a in answers] == [None] * 6 and told.count("start b") == 1
    assert all(each.output.read_text() == f"object of {each.method}" for each in jobs)
    assert len(made.scheduler.workers) == 2


def test_a_unit_at_which_workers_are_lost_is_given_up(
    start: Start, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ATTEMPTS", 2)
    made = start(3)
    pids = tmp_path / "pids"

    def end() -> None:
        (first,) = wait_for_pids(pids)
        lose(made, first)
        wait_for(lambda: wait_for_pids(pids) != [first], "another worker's turn")
        lose(made, *wait_for_pids(pids))

    ending = threading.Thread(target=end)
    ending.start()
    answers, _ = run(made.scheduler_address, [job("a"), job("b", hang=True, pids=str(pids))])
    ending.join()
    assert answers[0].error is None and answers[1].error is not None
    assert answers[1].error.startswith("b: 2 workers of the cluster were lost at it\n  inproc://")


def test_a_cluster_that_has_lost_all_workers_is_said(
    start: Start, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "GRACE", 0.3)
    made = start(1)
    pids = tmp_path / "pids"
    ending = threading.Thread(target=lambda: lose(made, wait_for_pids(pids)[0]))
    ending.start()
    with pytest.raises(ClusterError, match=r"^all workers of inproc://\S+ are lost$"):
        run(made.scheduler_address, [job("a", hang=True, pids=str(pids))])
    ending.join()


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_what_stops_a_build_stops_its_compilers(
    start: Start, job: Any, tmp_path: Path, error: BaseException
) -> None:
    made = start(2)
    pids = tmp_path / "pids"

    def finished(answer: Answer) -> None:
        wait_for_pids(pids)
        raise error

    jobs = [job("a", hang=True, pids=str(pids)), job("b"), job("c")]
    with connected(made.scheduler_address) as there, pytest.raises(type(error)):
        there.run_jobs(jobs, lambda job: None, finished)
    wait_for_end(wait_for_pids(pids))
    wait_for(lambda: not made.scheduler.tasks, "the end of all futures")


def test_a_worker_with_other_versions_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(2)
    own = cluster_worker.versions()
    assert own["torch"] == torch.__version__ and own.keys() >= {"mmpack", "executorch", "python"}
    theirs = {**own, "torch": "2.12.1", "mmpack's code": "0123"}
    monkeypatch.setattr(cluster.Cluster, "call", lambda self, address, function: theirs)
    torch_, code = own["torch"], own["mmpack's code"]
    says = (
        f"would make other objects: torch is 2.12.1 there and {torch_} here, mmpack's code is 0123 "
        f"there and {code} here; install there what is installed here"
    )
    with pytest.raises(ClusterError, match=re.escape(says)), connected(made.scheduler_address):
        pass


def test_a_worker_without_mmpack_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made = start(1)

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'mmpack'")

    monkeypatch.setattr(cluster_worker, "versions", missing)
    says = r"cannot run mmpack \(ModuleNotFoundError: No module named 'mmpack'\)"
    with pytest.raises(ClusterError, match=says), connected(made.scheduler_address):
        pass


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "tcp://127.0.0.1", "nonsense://a:1", "no.such.host.invalid:1"]
)
def test_a_scheduler_that_is_not_there_is_said(address: str) -> None:
    says = rf"^no Dask scheduler can be reached at '{address}': \w+: .*such as tcp://host:8786$"
    with pytest.raises(ClusterError, match=says), connected(address):
        pass


def test_a_scheduler_without_workers_is_said(start: Start) -> None:
    address = start(0).scheduler_address
    says = rf"^the Dask scheduler at {address} has no workers; start some: dask worker {address}$"
    with pytest.raises(ClusterError, match=says), connected(address):
        pass


def test_the_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    says = r"the package distributed, which is missing: pip install 'mmpack\[cluster\]'$"
    with pytest.raises(ClusterError, match=says), connected("tcp://127.0.0.1:1"):
        pass


def test_a_scheduler_that_is_lost_is_said(start: Start, job: Any, tmp_path: Path) -> None:
    made = start(1)
    pids = tmp_path / "pids"

    def end() -> None:
        wait_for_pids(pids)
        made.sync(made.scheduler.close)

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(ClusterError, match=r"^the Dask scheduler at inproc://\S+ is lost: "):
        run(made.scheduler_address, [job("a", hang=True, pids=str(pids))])
    ending.join()
    os.kill(wait_for_pids(pids)[0], signal.SIGKILL)  # or Dask waits for it
