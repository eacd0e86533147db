"""One program with methods for the NPU and for the CPU, built as a user would build it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..compile.projects import Project
from .qnn import HEAD, METHODS, MODEL


@pytest.fixture(scope="session")
def npu(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Project:
    """The project of `qnn.py`, built in worker processes; its program is `npu.output`."""
    folder = tmp_path_factory.mktemp("npu")
    project = Project(folder, build_cache).model(MODEL).spec(METHODS, HEAD)
    project.build(workers=True)
    return project
