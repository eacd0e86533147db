"""`data` of a spec: weights beside the program, its own or shared with other programs'."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mmpack.multimethod import load, verify
from mmpack.multimethod.driver import stages as driver
from mmpack.multimethod.errors import ExecutionError, OutputError
from mmpack.multimethod.link import LinkReport
from mmpack.multimethod.link.data_file import DataFile

from ..compile.projects import Project

MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.up = nn.Linear(32, 96)
    def look(self, tokens):
        return self.table(tokens)
    def forward(self, x):
        return torch.relu(self.up(x))
"""
SPEC = """
data: {data}
methods:
  look:
    module: "."
    call: look
    target: plain
    precision: 8w
    inputs: {{tokens: {{shape: [3], dtype: int64, range: 0..63}}}}
  {name}: {{module: ".", target: cpu, inputs: {{x: [{rows}, 32]}}}}
"""
WEIGHT = 32 * 96 * 4


def spec(project: Project, data: str, name: str = "up", rows: int = 4) -> None:
    project.model(MODEL).spec(SPEC.format(data=data, name=name, rows=rows))


def other_weights(project: Project) -> None:
    path = project.folder / "model.py"
    path.write_text(path.read_text().replace("seed(0)", "seed(1)"))


def test_separate(project: Project) -> None:
    """Its own file, called as the program; the same results, by the spec that it was built from."""
    spec(project, "inside")
    inside = project.build()
    x, tokens = torch.randn(4, 32), torch.tensor([1, 63, 7])
    program = load(project.output)
    expected = program.run_method("up", x).out, program.run_method("look", tokens).out
    spec(project, "separate")
    report = project.build()
    assert report.compiled == 0 and inside.link.data is None
    data = project.output.with_suffix(".ptd")
    assert report.link.data == (data, data.stat().st_size)
    assert inside.link.size - WEIGHT > report.link.size and data.stat().st_size > WEIGHT
    assert report.link.saved == inside.link.saved
    program = load(project.output)
    assert torch.equal(program.run_method("up", x).out, expected[0])
    assert torch.equal(program.run_method("look", tokens).out, expected[1])
    verify(project.output, project.path)


def test_rebuilt_it_has_what_it_needs_only(project: Project) -> None:
    spec(project, "separate")
    project.build()
    data = project.output.with_suffix(".ptd")
    size = data.stat().st_size
    other_weights(project)
    project.build()
    assert data.stat().st_size == size


def test_two_specs_one_file(project: Project) -> None:
    """The second finds all weights there; each is found in them by both."""
    spec(project, "weights.ptd")
    prefill, decode = project.folder / "prefill.pte", project.folder / "decode.pte"
    project.build(output=prefill)
    data = project.folder / "weights.ptd"
    before = data.stat()
    spec(project, "weights.ptd", name="one", rows=1)
    project.build(output=decode)
    assert data.stat().st_ino == before.st_ino and data.stat().st_mtime_ns == before.st_mtime_ns
    x = torch.randn(4, 32)
    four = load(prefill).run_method("up", x).out
    torch.testing.assert_close(load(decode).run_method("one", x[:1]).out, four[:1])
    with DataFile.open(data) as file:
        assert sum(extent.size == WEIGHT for extent in file.extents.values()) == 1


def test_a_build_that_fails_leaves_both_files(project: Project) -> None:
    spec(project, "separate")
    project.build()
    kept = {path: path.read_bytes() for path in project.folder.glob("out.*")}
    other_weights(project)
    link, calls = driver.link_parts, []

    def failing(*args: object) -> LinkReport:
        calls.append(args)
        if len(calls) == 2:
            raise ExecutionError("just before the end")
        return link(*args)  # type: ignore[arg-type]

    with patch.object(driver, "link_parts", failing), pytest.raises(ExecutionError):
        project.build()
    assert {path: path.read_bytes() for path in project.folder.glob("out.*")} == kept
    assert not [name for name in os.listdir(project.folder) if name.endswith(".tmp")]


def test_the_data_may_be_none_of_the_sources(project: Project) -> None:
    spec(project, "weights.ptd")
    (project.folder / "weights.ptd").symlink_to(project.path)
    before = project.path.read_text()
    with pytest.raises(OutputError, match=r"weights\.ptd: is an input of this command"):
        project.build()
    assert project.path.read_text() == before


def test_a_folder_is_told_at_the_beginning(project: Project) -> None:
    spec(project, "separate")
    Path(project.output.with_suffix(".ptd")).mkdir()
    with pytest.raises(OutputError, match=r"out\.ptd: is a folder"):
        project.build()
