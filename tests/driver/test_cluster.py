"""Builds on a cluster: the objects are, to the byte, those of a local build. The compilers are the
real ones; Dask's workers are processes of their own only in the slow tests."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

from mmpack.cli import main
from mmpack.multimethod import build, load
from mmpack.multimethod.compile import cluster_worker
from mmpack.multimethod.errors import ClusterError
from mmpack.multimethod.progress import Silent

from ..compile.processes import wait_for
from ..compile.projects import Project

HEAD = """\
mmpack: 1
model: {factory: model.py:make}
calibration: model.py:examples
targets:
  cpu: {backend: xnnpack}
  plain: {backend: portable}
  small: {backend: xnnpack, precision: 8a8w}
"""
MODEL = """
    from attending import attend

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))

        def forward(self, x):
            return self.layers[0](x)

        def attended(self, x):
            return attend(x)

    def examples():
        torch.manual_seed(1)
        yield from ({"x": torch.randn(1, 32)} for _ in range(8))
"""
OPERATOR = """
    import os
    import torch
    import executorch.extension.llm.custom_ops.custom_ops  # it registers the operator

    with open(os.environ["MMPACK_TEST_IMPORTS"], "a") as file:
        print(__file__, file=file)

    def attend(x):
        return torch.ops.llama.custom_sdpa(x, x, x, 0, None, 0.0, True, None)
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Dask tells at length of workers that are lost."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("distributed").setLevel(logging.WARNING)


def objects(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "objects").glob("*.pte")}


def test_objects_are_those_of_a_local_build(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what brings code along, of what is calibrated."""
    imports = tmp_path / "imports"
    monkeypatch.setenv("MMPACK_TEST_IMPORTS", str(imports))
    project.model(MODEL).file("attending.py", OPERATOR)
    project.spec(
        """
        methods:
          quantized: {module: ., target: small, inputs: {x: [1, 32]}}
          attended: {module: ., call: attended, target: plain, inputs: {x: [1, 4, 2, 8]}}
        """,
        HEAD,
    )
    output = tmp_path / "there.pte"
    cache = tmp_path / "there"
    command = ["build", str(project.path), "-o", str(output), "--cache", str(cache)]
    local = {"processes": False, "dashboard_address": None, "local_directory": str(tmp_path)}
    with LocalCluster(n_workers=1, threads_per_worker=1, **local) as made:
        run = CliRunner().invoke(main, [*command, "--cluster", made.scheduler_address])
        for worker in made.workers.values():
            cluster_worker.room(worker).close()
    assert run.exit_code == 0, run.output
    project.build(cache=tmp_path / "here")
    assert objects(cache) == objects(tmp_path / "here") and len(objects(cache)) == 2
    assert output.read_bytes() == project.output.read_bytes()
    carried = [path for path in imports.read_text().split() if "/mmpack/" in path]
    assert len(carried) == 1 and Path(carried[0]).name == "attending.py"


def test_a_cluster_that_is_not_there_leaves_the_output(project: Project, tmp_path: Path) -> None:
    project.model("class Model(nn.Module):\n    def forward(self, x):\n        return x * 2\n")
    project.spec("methods: {f: {module: ., target: plain, inputs: {x: [2]}}}")
    output = tmp_path / "out.pte"
    output.write_text("what was there")
    command = ["build", str(project.path), "-o", str(output), "--cluster", "nonsense"]
    run = CliRunner().invoke(main, command)
    assert run.exit_code == ClusterError.exit_code == 13
    assert run.output.startswith("error: no Dask scheduler can be reached at 'nonsense'")
    assert output.read_text() == "what was there"


def compilers(pid: int) -> list[int]:
    """The compiler processes that a process has."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"compile.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


class Killer(Silent):
    """Has the first Dask worker that compiles something be killed."""

    def __init__(self, address: str) -> None:
        self.killed: list[str] = []
        self.events: list[str] = []
        self._address = address
        self._thread = threading.Thread(target=self._kill)

    def stage(self, name: str, total: int) -> None:
        if name == "compile":
            self._thread.start()

    def start(self, method: str) -> None:
        self.events.append(f"start {method}")

    def done(self, method: str, note: str = "") -> None:
        self.events.append(f"done {method} {note}".strip())

    def _kill(self) -> None:
        with Client(self._address, set_as_default=False) as client:
            pids: dict[str, int] = client.run(os.getpid)
        wait_for(lambda: any(map(compilers, pids.values())), "a compiler")
        address, pid = next((a, p) for a, p in pids.items() if compilers(p))
        os.kill(pid, signal.SIGKILL)
        self.killed.append(address)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPACK_TEST_IMPORTS", os.devnull)
    project.model(MODEL).file("attending.py", OPERATOR)
    project.spec(
        """
        methods:
          layers.{i}: {each: {i: 0..5}, module: "layers.{i}", target: cpu, inputs: {input: [1, 32]}}
        """,
        HEAD,
    )
    there, here = tmp_path / "there", tmp_path / "here"
    options: dict[str, Any] = {"dashboard_address": None, "local_directory": str(tmp_path)}
    with LocalCluster(n_workers=3, threads_per_worker=1, **options) as made:
        killer = Killer(made.scheduler_address)
        report = build(
            project.path,
            tmp_path / "there.pte",
            cache=there,
            cluster=made.scheduler_address,
            progress=killer,
            share=False,  # all six are compiled
        )
        assert len(killer.killed) == 1 and report.compiled == 6
        wait_for(lambda: len(made.scheduler_info["workers"]) == 3, "the worker in its place")
        assert killer.killed[0] not in made.scheduler_info["workers"]

        with Client(made.scheduler_address, set_as_default=False) as client:
            other = next(iter(client.scheduler_info()["workers"]))
            client.run(
                exec,
                "import mmpack.multimethod.compile.cluster_worker as worker\n"
                "worker.installed = lambda package: '0.0.1'",
                workers=[other],
            )
        with pytest.raises(
            ClusterError, match=f"^the worker {other} would .* torch is 0.0.1 there"
        ):
            build(project.path, tmp_path / "no.pte", cache=here, cluster=made.scheduler_address)
    project.build(cache=here, workers=True, jobs=2)
    assert objects(there) == objects(here) and len(objects(here)) == 6
    assert (tmp_path / "there.pte").read_bytes() == project.output.read_bytes()
    assert load(tmp_path / "there.pte")["layers.3"] is not None
