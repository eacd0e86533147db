"""Programs whose data lie in a `.ptd`: found beside them or named, and held against them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from click.testing import CliRunner
from executorch.exir import ExecutorchBackendConfig, to_edge
from torch import nn
from torch.export import export

from mmpack.cli import main
from mmpack.multimethod import build, inspect, load
from mmpack.multimethod.compile import objects
from mmpack.multimethod.errors import FormatError, OutputError
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.link import link

from ..compile.projects import run_here

ONE = torch.ones(2)

MODEL = """
import torch
from torch import nn

class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.register_buffer("seen", torch.zeros(3, 16))

    def table(self, tokens):
        return self.embedding(tokens)

    def mlp(self, x):
        return self.down(torch.relu(self.up(x)))

    def keep(self, x):
        self.seen.add_(x)
        return self.seen + self.up.bias[:16]

    def forward(self, x):
        return self.mlp(x)
"""
SPEC = """
mmpack: 1
model: {{factory: model.py:Tower}}
dims: {{n: {{min: 1, max: 8}}}}
targets: {{cpu: {{backend: xnnpack}}, plain: {{backend: portable}}}}
state: {{shared: [seen]}}
data: {data}
methods:
  table:
    module: "."
    call: table
    target: plain
    inputs: {{tokens: {{shape: [n], dtype: int64, range: 0..49}}}}
  mlp: {{module: ".", call: mlp, target: cpu, inputs: {{x: [n, 16]}}}}
  one: {{module: ".", call: mlp, target: cpu, inputs: {{x: [1, 16]}}}}
  keep: {{module: ".", call: keep, target: plain, inputs: {{x: [3, 16]}}}}
  also: {{module: ".", call: keep, target: plain, inputs: {{x: [3, 16]}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`in.pte`, with its weights inside, and `out.pte`, with its own in `out.ptd`."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "model.py").write_text(MODEL)
    for name, data in (("in", "inside"), ("out", "separate")):
        (folder / f"{name}.yaml").write_text(SPEC.format(data=data))
        with patch.object(objects, "run_jobs", run_here):
            build(folder / f"{name}.yaml", folder / f"{name}.pte")
    return folder


def calls(program: Program) -> list[torch.Tensor]:
    """What all its methods give, state written and read by two of them."""
    torch.manual_seed(1)
    x = torch.randn(5, 16)
    return [
        program.run_method("table", torch.tensor([3, 0, 49])).out,
        program.run_method("mlp", x).out,
        program.run_method("one", x[:1]).out,
        program.run_method("keep", x[:3]).out,
        program.run_method("also", x[1:4]).out,
        program.run_method("keep", x[:3]).out,
    ]


@pytest.mark.parametrize("mmap", [False, True])
def test_the_results_are_those_with_data_inside(folder: Path, mmap: bool) -> None:
    inside, outside = (load(folder / f"{name}.pte", mmap=mmap) for name in ("in", "out"))
    expected = calls(inside)
    for one, other in zip(calls(outside), expected, strict=True):
        assert torch.equal(one, other)
    outside.reset()
    for one, other in zip(calls(outside), expected, strict=True):
        assert torch.equal(one, other)


def test_the_weights_are_outside(folder: Path) -> None:
    model: dict[str, type[nn.Module]] = {}
    exec(MODEL, model)
    weights = model["Tower"]().state_dict()
    program, data = (folder / "out.pte").read_bytes(), (folder / "out.ptd").read_bytes()
    for name in ("embedding.weight", "up.weight", "down.weight"):
        content = weights[name].numpy().tobytes()
        transposed = weights[name].T.contiguous().numpy().tobytes()
        assert data.count(content) + data.count(transposed) == 1
        assert content not in program and transposed not in program


def test_it_does_not_care_what_becomes_of_its_files(folder: Path, tmp_path: Path) -> None:
    for name in ("out.pte", "out.ptd"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    program = load(tmp_path / "out.pte")
    (tmp_path / "out.ptd").write_bytes(b"")
    (tmp_path / "out.pte").unlink()
    for one, other in zip(calls(program), calls(load(folder / "in.pte")), strict=True):
        assert torch.equal(one, other)


def test_data_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.pte").write_bytes((folder / "out.pte").read_bytes())
    with pytest.raises(FormatError, match=r"its weights \(as '.*'\) are in out\.ptd, which is not"):
        load(tmp_path / "moved.pte")
    program = load(tmp_path / "moved.pte", data=folder / "out.ptd")
    for one, other in zip(calls(program), calls(load(folder / "in.pte")), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(FormatError, match=r"none\.ptd: cannot be opened: No such file"):
        load(tmp_path / "moved.pte", data=tmp_path / "none.ptd")


def test_data_of_another_program(folder: Path, toy: Path, tmp_path: Path) -> None:
    link([toy], tmp_path / "toy.pte", data="toy.ptd")
    with pytest.raises(FormatError, match=r"toy\.ptd: has no '.*', which .*out\.pte needs"):
        load(folder / "out.pte", data=tmp_path / "toy.ptd")
    with pytest.raises(FormatError, match=r"out\.pte: is not ExecuTorch tensor data \(\.ptd\)"):
        load(folder / "out.pte", data=folder / "out.pte")


def test_damaged_data(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "out.ptd").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out.ptd").write_bytes(data)
    with pytest.raises(FormatError, match=r"out\.ptd: is damaged, or not the one that .*out\.pte"):
        load(folder / "out.pte", data=tmp_path / "out.ptd")
    (tmp_path / "out.ptd").write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"out\.ptd: is truncated"):
        load(folder / "out.pte", data=tmp_path / "out.ptd")


def test_the_toy_and_another_share_one_file(folder: Path, toy: Path, tmp_path: Path) -> None:
    """Two programs at once, each with state of its own."""
    link([toy], tmp_path / "a.pte", data="w.ptd")
    link([folder / "out.pte"], tmp_path / "b.pte", data="w.ptd")
    assert sorted(os.listdir(tmp_path)) == ["a.pte", "b.pte", "w.ptd"]
    a, b = load(tmp_path / "a.pte"), load(tmp_path / "b.pte")
    assert a.run_method("add", ONE).total.tolist() == [8.0, 0.0]
    expected = calls(load(folder / "in.pte"))
    assert all(torch.equal(one, other) for one, other in zip(calls(b), expected, strict=True))
    assert a.run_method("scaled", ONE).product.tolist() == [8.0, 0.0]


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Callable[[torch.Tensor], torch.Tensor]]:
    """A program that ExecuTorch made, with its weights in a file of its own."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).eval(), torch.ones(2, 4)
    edge = to_edge(export(model, (x,)))
    made = edge.to_executorch(ExecutorchBackendConfig(external_constants=lambda node: "weights"))
    (tmp_path / "foreign.pte").write_bytes(bytes(made.buffer))
    made.write_tensor_data_to_file(str(tmp_path))
    return tmp_path / "foreign.pte", model


def test_a_program_that_executorch_made(
    foreign: tuple[Path, Callable[[torch.Tensor], torch.Tensor]],
) -> None:
    path, model = foreign
    with pytest.raises(FormatError, match=r"takes 'weight' from a \.ptd file, and none is given"):
        load(path)
    x = torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)
    got = load(path, data=path.with_name("weights.ptd")).run_method("forward", x)[0]
    torch.testing.assert_close(got, expected)


def test_inspect_tells_of_it(folder: Path, tmp_path: Path) -> None:
    seen = inspect(folder / "out.pte")
    assert seen.data is not None
    size = (folder / "out.ptd").stat().st_size
    assert seen.data["file"] == "out.ptd" and seen.data["size"] == size
    assert sum(seen.data["keys"].values()) <= size
    table = 50 * 16 * 4
    (key,) = (key for key in seen.data["keys"] if key.startswith("float32[50,16]:"))
    assert seen.data["keys"][key] == table and f"  {key}: 3.2 kB" in str(seen)
    assert seen.methods["table"].bytes == inspect(folder / "in.pte").methods["table"].bytes >= table
    assert seen.methods["mlp"].bytes == inspect(folder / "in.pte").methods["mlp"].bytes
    (tmp_path / "out.pte").write_bytes((folder / "out.pte").read_bytes())
    alone = inspect(tmp_path / "out.pte")
    assert alone.data == {**seen.data, "size": None}
    assert "data in out.ptd, which is not there" in str(alone)
    assert inspect(folder / "in.pte").data is None


def test_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    """Linked into one file of weights, moved apart, and run with it."""

    def mmpack(*args: object) -> str:
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exit_code == 0, result.output
        return result.stdout

    told = mmpack("link", folder / "in.pte", "-o", tmp_path / "a.pte", "--data", "w.ptd")
    assert (tmp_path / "w.ptd").is_file() and "w.ptd" in told
    expected = mmpack("run", folder / "in.pte", "mlp", "x=random")
    assert mmpack("run", tmp_path / "a.pte", "mlp", "x=random") == expected
    (tmp_path / "elsewhere").mkdir()
    data = (tmp_path / "w.ptd").rename(tmp_path / "elsewhere" / "w.ptd")
    assert mmpack("run", tmp_path / "a.pte", "mlp", "x=random", "--data", data) == expected
    result = CliRunner().invoke(main, ["run", str(tmp_path / "a.pte"), "mlp", "x=random"])
    assert result.exit_code == FormatError.exit_code and "w.ptd, which is not" in result.stderr
    into = ["-o", str(data), "--data", str(data)]
    result = CliRunner().invoke(main, ["run", str(tmp_path / "a.pte"), "mlp", "x=random", *into])
    assert result.exit_code == OutputError.exit_code and data.stat().st_size > 0
