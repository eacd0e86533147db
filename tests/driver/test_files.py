"""`files` of a spec: they are in the program as they were beside the spec, and in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpack.multimethod import inspect, load
from mmpack.multimethod.errors import OutputError, SpecError

from ..compile.projects import Project

MODEL = """
class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x)
"""
SPEC = """
files: {tokenizer.json: data/tok.json, note: data/note}
methods: {f: {module: ".", target: plain, inputs: {x: [2]}}}
"""
TEXT = '{"words": ["é"]}\n' * 3000


@pytest.fixture
def project(project: Project) -> Project:
    project.model(MODEL).spec(SPEC)
    project.file("data/tok.json", TEXT)
    project.file("data/note", "first")
    return project


def test_they_travel_and_are_no_part_of_what_is_cached(project: Project, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    report = project.build(cache=cache)
    assert report.compiled == 1
    program = load(project.output)
    assert dict(program.files) == {"tokenizer.json": TEXT.encode(), "note": b"first"}
    assert inspect(project.output).files == {"note": 5, "tokenizer.json": len(TEXT.encode())}
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pte" for path in kept)
    assert not any(TEXT.encode() in path.read_bytes() for path in kept)

    project.file("data/note", "second")
    assert project.build(cache=cache).compiled == 0
    assert load(project.output).files["note"] == b"second"


def test_one_that_is_missing_is_told_with_its_line(project: Project) -> None:
    (project.folder / "data" / "note").unlink()
    with pytest.raises(SpecError) as raised:
        project.build()
    assert "files.note: there is no file 'data/note' beside the spec" in str(raised.value)
    assert f"{project.path}:5:46: " in str(raised.value)


def test_one_that_cannot_be_read_is_told_with_its_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "note":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(SpecError, match=r"files\.note: 'data/note' cannot be read: Permission den"):
        project.build()
    assert not project.output.exists()


def test_the_output_may_be_none_of_them(project: Project) -> None:
    with pytest.raises(OutputError):
        project.build(output=project.folder / "data" / "note")
    assert (project.folder / "data" / "note").read_text() == "first"
