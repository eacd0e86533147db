"""Units as files: the object is, to the byte, the one that is made of the program itself."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram, export

from mmpack.multimethod import load
from mmpack.multimethod.compile import objects, worker
from mmpack.multimethod.compile.contents import Contents
from mmpack.multimethod.compile.lower import lower
from mmpack.multimethod.compile.unit_file import (
    UnitFile,
    read_about,
    read_program,
    tensors_of,
    write_unit,
)
from mmpack.multimethod.errors import CompileError, OutputError
from mmpack.multimethod.signature import Signature, ValueSpec

from .projects import Project, run_here


class Mixed(nn.Module):
    """All kinds of tensors that a program holds and ExecuTorch takes: dense, transposed, parts of
    one memory, equal ones, empty ones, numbers, integers of odd sizes, state, constants."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(8, 8)
        self.twin = nn.Linear(8, 8)
        self.twin.load_state_dict(self.up.state_dict())
        self.image = nn.Conv2d(3, 8, 3)
        both = torch.randn(2, 8, 8)
        self.first, self.second = nn.Parameter(both[0]), nn.Parameter(both[1])
        self.turned = nn.Parameter(torch.randn(8, 8).t())
        self.register_buffer("seen", torch.zeros(1, 8))
        self.register_buffer("also_seen", torch.zeros(1, 8))
        self.register_buffer("rows", torch.arange(3, dtype=torch.int8), persistent=False)
        self.register_buffer("times", torch.tensor(3.0))
        self.register_buffer("none", torch.empty(0, 8))

    def forward(self, x: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen.add_(x)
        y = self.twin(self.up(x)) @ self.first + x @ self.second
        y = (y @ self.turned) * self.times + torch.tensor([2.0])
        y = torch.cat([y, self.none]) + self.rows.sum() + self.also_seen
        return y, self.image(picture), self.seen + 0.0


EXAMPLE = (torch.ones(1, 8), torch.ones(1, 3, 6, 6))
SIGNATURE = Signature("f", (ValueSpec("x", "float32", (1, 8)),), (), {})


def mixed(*, apart: bool = False) -> ExportedProgram:
    """apart: parts of one memory are clones."""
    model = Mixed().eval().requires_grad_(False)
    if apart:
        model.first.data, model.second.data = model.first.clone(), model.second.clone()
    return export(model, EXAMPLE).run_decompositions({})


def write(
    folder: Path, program: ExportedProgram, contents: Contents, name: str = "f"
) -> tuple[Path, UnitFile]:
    held = contents.hold(name, tensors_of(program), folder / f"{name}.safetensors")
    about = UnitFile(name, "portable", {}, "planned", SIGNATURE, weights=held)
    write_unit(folder / f"{name}.pt2", about, program)
    return folder / f"{name}.pt2", about


def bring(unit: Path, folder: Path) -> Path:
    """What a unit refers to, in a folder by hash, as it is brought to another machine."""
    folder.mkdir(exist_ok=True)
    for place in read_about(unit).contents():
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            (folder / place.hash).write_bytes(file.read(place.size))
    return folder


@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
def test_the_object_is_the_one_of_the_program_with_its_weights(
    tmp_path: Path, backend: str
) -> None:
    """Oracle: torch's own file, which holds the weights. (XNNPACK takes the whole memory that a
    weight is a part of for that weight.)"""
    torch.export.save(mixed(apart=True), tmp_path / "whole.pt2")
    lower(torch.export.load(tmp_path / "whole.pt2"), "f", backend, {}, tmp_path / "expected.pte")
    path, _ = write(tmp_path, mixed(), Contents())
    lower(read_program(path, read_about(path)), "f", backend, {}, tmp_path / "made.pte")
    assert (tmp_path / "made.pte").read_bytes() == (tmp_path / "expected.pte").read_bytes()
    made = load(tmp_path / "made.pte")["f"](*EXAMPLE)
    for one, other in zip(Mixed().eval()(*EXAMPLE), made, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_the_program_has_its_tensors_again(tmp_path: Path) -> None:
    program = mixed()
    path, about = write(tmp_path, program, Contents())
    assert read_about(path) == about
    again = read_program(path, about)
    for before, after in (
        (program.state_dict, again.state_dict),
        (program.constants, again.constants),
    ):
        assert list(before) == list(after)
        for name, tensor in before.items():
            found = after[name]
            assert type(found) is type(tensor) and found.dtype == tensor.dtype, name
            assert found.stride() == tensor.stride() and torch.equal(found, tensor), name
            assert found.requires_grad == tensor.requires_grad
            assert found.untyped_storage().nbytes() == found.nbytes


def test_the_weights_are_not_in_the_file(tmp_path: Path) -> None:
    program = mixed()
    path, about = write(tmp_path, program, Contents())
    assert about.weights.keys() == program.state_dict.keys() | program.constants.keys()
    with zipfile.ZipFile(path) as archive:
        stored = [i for i in archive.infolist() if "/weights/weight_" in i.filename]
        stored += [i for i in archive.infolist() if "/constants/tensor_" in i.filename]
        assert stored and all(not i.file_size for i in stored)
    assert program.state_dict["up.weight"].shape == (8, 8)  # put back


def test_what_may_be_written_to_is_memory_of_its_own(tmp_path: Path) -> None:
    path, about = write(tmp_path, mixed(), Contents())
    assert about.weights["seen"].content == about.weights["also_seen"].content
    before = (tmp_path / "f.safetensors").read_bytes()
    program = read_program(path, about)
    program.state_dict["seen"].add_(1)
    assert not program.state_dict["also_seen"].any()
    with torch.no_grad():
        program.state_dict["up.weight"].zero_()
    assert (tmp_path / "f.safetensors").read_bytes() == before


def test_a_unit_that_was_brought_elsewhere_needs_none_of_the_files_that_it_names(
    tmp_path: Path,
) -> None:
    path, _ = write(tmp_path, mixed(), Contents())
    brought = bring(path, tmp_path / "brought")
    (tmp_path / "f.safetensors").unlink()
    program = read_program(path, read_about(path, brought), brought)
    assert all(torch.equal(program.state_dict[n], t) for n, t in mixed().state_dict.items())
    with pytest.raises(CompileError, match=r"^f: '.*' cannot be read: .*f\.safetensors"):
        read_program(path, read_about(path))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_weight_that_is_another_one_is_an_error(tmp_path: Path, elsewhere: bool) -> None:
    path, about = write(tmp_path, mixed(), Contents())
    place = about.weights["turned"].content
    brought = bring(path, tmp_path / "brought") if elsewhere else None
    file = brought / place.hash if brought is not None else Path(place.path)
    data = bytearray(file.read_bytes())
    data[(0 if elsewhere else place.offset) + 5] ^= 1
    file.write_bytes(data)
    says = rf"^f: 'turned' is damaged, .* has the hash {place.hash[:16]}…, found \w+… in {file}$"
    with pytest.raises(CompileError, match=says):
        read_program(path, about, brought)
    assert file.exists() != elsewhere  # there it would be taken for that content the next time
    file.write_bytes(data[: place.offset if not elsewhere else 10])
    with pytest.raises(CompileError, match=r"^f: '.*' cannot be read: .* bytes, expected \d+"):
        read_program(path, about, brought)


def test_a_unit_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    _, about = write(tmp_path, mixed(), Contents())
    with pytest.raises(OutputError, match=r"none/f\.pt2 cannot be written: No such file"):
        write_unit(tmp_path / "none" / "f.pt2", about, mixed())


QUANTIZED = """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("seen", torch.zeros(1, 8))

        def forward(self, x):
            self.seen.copy_(self.linear(x) + self.seen)
            return self.linear(self.seen)

    def examples():
        torch.manual_seed(1)
        yield from ({"x": torch.randn(1, 8)} for _ in range(8))
"""


def test_a_calibrated_unit_gives_the_same_object_elsewhere(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (
        "mmpack: 1\nmodel: {factory: model.py:make}\ncalibration: model.py:examples\n"
        "targets: {cpu: {backend: xnnpack, precision: 8a8w}}\n"
    )
    project.model(QUANTIZED).spec(
        "methods: {f: {module: '.', target: cpu, inputs: {x: [1, 8]}}}", head
    )
    objects_: list[bytes] = []

    def there(jobs: Any, workers: int, started: Any, finished: Any, **_: Any) -> Any:
        """Like `run_here`, on what was brought to another folder."""
        (job,) = jobs
        brought = bring(job.unit, tmp_path / "brought")
        plan = read_about(job.unit).plan
        assert plan is not None and plan.calls and plan.tape is not None
        plan.tape.rename(tmp_path / "tape")
        figures = worker._run(
            {
                "method": "f",
                "unit": str(job.unit),
                "output": str(tmp_path / "there.pte"),
                "threads": 1,
                "contents": str(brought),
            }
        )
        assert "error" not in figures, figures
        objects_.append((tmp_path / "there.pte").read_bytes())
        (tmp_path / "tape").rename(plan.tape)
        answers = run_here(jobs, workers, started, lambda answer: None)
        objects_.append(job.output.read_bytes())
        finished(answers[0])
        return answers

    monkeypatch.setattr(objects, "run_jobs", there)
    # workers: with `objects.run_jobs` as it stands there now
    project.build(workers=True, cache=tmp_path / "cache", verify=False)
    assert len(objects_) == 2
    assert objects_[0] == objects_[1]
