"""What a worker process keeps of its jobs: nothing."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.partition.graphs import sdpa
from executorch.exir.lowered_backend_module import LoweredBackendModule

from mmpack.multimethod.compile import lower, worker

from .projects import Project

MODEL = """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x) * x.mean(-1, keepdim=True)
"""
"""XNNPACK's partitioner takes no such mean, and says why."""


def lowered() -> list[Any]:
    return [thing for thing in gc.get_objects() if type(thing) is LoweredBackendModule]


def test_a_job_that_is_done_is_forgotten(project: Project, tmp_path: Any) -> None:
    project.model(MODEL).spec("methods: {f: {module: '.', target: cpu, inputs: {x: [1, 8]}}}")
    worker._forget()
    before = len(lowered())
    project.build(cache=tmp_path / "cache")  # lowers in this process
    assert len(lowered()) > before  # or there is nothing to forget any more
    worker._forget()
    assert len(lowered()) == before


@pytest.mark.parametrize("backend", ["xnnpack", "portable"])
def test_it_gets_ready_by_lowering_something_that_it_forgets(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a first method takes no longer than a second: what a process makes once is there."""
    monkeypatch.setattr(worker, "collect_seldom", lambda: None)
    sdpa.get_graphs.cache_clear()
    worker._forget()
    before = len(lowered())
    monkeypatch.setattr(sys, "argv", ["worker.py", worker.EXPECT, backend, "{}"])
    made = []
    whole = lower.lower
    monkeypatch.setattr(lower, "lower", lambda *args: made.append(whole(*args)))
    worker._get_ready()
    (figures,) = made
    assert figures.delegated == (backend == "xnnpack")
    assert sdpa.get_graphs.cache_info().currsize == (backend == "xnnpack")
    assert len(lowered()) == before


def test_what_cannot_be_got_ready_is_told_and_left_to_the_first_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "collect_seldom", lambda: None)
    monkeypatch.setattr(sys, "argv", ["worker.py", worker.EXPECT, "nowhere", "{}"])
    worker._get_ready()
    assert "no backend is called 'nowhere'" in capsys.readouterr().err


def test_a_worker_computes_on_its_share_of_the_cores(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    job = {"method": "f", "backend": "portable", "options": {}, "unit": str(tmp_path / "none")}
    job |= {"output": "", "imports": (), "plan": None, "io": "planned"}
    try:
        for threads in (3, 1):
            told = worker._run({**job, "threads": threads})
            assert "error" in told  # there is no unit; that is found after
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
