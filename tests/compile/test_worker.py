"""What a worker process keeps of its jobs: nothing."""

from __future__ import annotations

import gc
from typing import Any

from executorch.exir.lowered_backend_module import LoweredBackendModule

from mmpack.multimethod.compile import worker

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
