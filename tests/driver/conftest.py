"""Builds that are killed run in processes of their own, with workers that hand out objects compiled
before, so that each takes about a second."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmpack.multimethod import load
from mmpack.multimethod.compile.cache import Cache

from .killable import Builder

REPLAY = Path(__file__).with_name("replay_worker.py")


@pytest.fixture(scope="module")
def program(example: Callable[[str], Path]) -> Path:
    return example("nested_matmul")


@pytest.fixture(scope="module")
def replay(
    program: Path, build_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    """The command of a worker that has the objects of `program` ready."""
    folder = tmp_path_factory.mktemp("replay")
    manifest = load(program).manifest
    assert manifest is not None
    for name, record in manifest.methods.items():
        found = Cache(build_cache).object(record.key)
        assert found is not None
        shutil.copyfile(found.path, folder / f"{name}.pte")
        (folder / f"{name}.json").write_text(json.dumps(found.figures))
    return (sys.executable, "-P", str(REPLAY), str(folder))


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    made = Builder(tmp_path_factory.mktemp("builder"))
    yield made
    made.close()
