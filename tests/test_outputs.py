"""No command writes over what it reads, nor over what is no file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod import OutputError, link
from mmpack.multimethod.driver.call import call_method


def test_a_build_refuses_the_files_that_its_spec_names(project: Any) -> None:
    project.model("class Model(nn.Module):\n    def forward(self, x): return x + 1\n")
    project.spec('methods: {f: {module: ".", target: plain, inputs: {x: [3]}}}\n')
    for name in ("spec.yaml", "model.py"):
        before = (project.folder / name).read_bytes()
        with pytest.raises(OutputError, match="is an input of this command"):
            project.build(output=project.folder / name)
        assert (project.folder / name).read_bytes() == before


def test_linking_and_running_refuse_their_inputs(toy: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias.pte"
    alias.symlink_to(toy)
    before = toy.read_bytes()
    with pytest.raises(OutputError, match="is an input of this command"):
        link([toy], alias)
    with pytest.raises(OutputError, match="is an input of this command"):
        call_method(toy, "matmul", ["a=random", "b=random"], {}, toy)
    assert toy.read_bytes() == before


def test_what_is_no_regular_file_is_left_alone(toy: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is no regular file"):
        link([toy], tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
