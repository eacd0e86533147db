"""The user's Python, imported from beside the spec, by several threads."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.compile.imports import importable, module_of_file
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.spec import load_spec

from .projects import HEAD


def test_the_path_is_afterwards_what_it_was(tmp_path: Path) -> None:
    before = list(sys.path)
    with importable(tmp_path):
        assert sys.path[0] == str(tmp_path)
    assert sys.path == before
    (tmp_path / "rude.py").write_text("import sys\nsys.path.pop(0)\n")
    with importable(tmp_path):
        module_of_file(tmp_path / "rude.py")
    assert sys.path == before


def test_threads_that_load_from_two_folders_each_get_their_own_neighbour(tmp_path: Path) -> None:
    for number in (3, 5):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "sizes.py").write_text(f"import time\ntime.sleep(0.02)\nSIZE = {number}\n")
        (folder / "model.py").write_text(
            "from torch import nn\ndef make():\n    from sizes import SIZE\n"
            "    return nn.Linear(SIZE, SIZE)\n"
        )
        (folder / "spec.yaml").write_text(
            HEAD + f"methods: {{f: {{module: '.', target: cpu, inputs: {{input: [{number}]}}}}}}\n"
        )
    before, found, failed = list(sys.path), [], []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                model: Any = load_model(load_spec(tmp_path / str(number) / "spec.yaml"))
                found.append((number, model.in_features))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(found) == [(3, 3)] * 5 + [(5, 5)] * 5
    assert sys.path == before


@pytest.mark.parametrize("name", ["mmpack.py", "mmpack/__init__.py"])
def test_something_called_mmpack_beside_the_spec_does_no_harm(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError('taken for mmpack')\n")
    (tmp_path / "late.py").write_text("from mmpack.multimethod import scratch\nHERE = scratch\n")
    with importable(tmp_path):
        sys.modules.pop("mmpack.multimethod.scratch", None)
        module = module_of_file(tmp_path / "late.py")
    assert module.HERE.__name__ == "mmpack.multimethod.scratch"
