"""Results in the caller's tensors: right on both engines, and written there at once by the native
one where the program leaves it the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mmpack.multimethod import CallError, build, load
from mmpack.multimethod.compile import objects
from mmpack.multimethod.flow.program import Program

from ..compile.projects import HEAD, run_here

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(16, 8), nn.Linear(16, 4)
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x):
        return self.one(x), self.other(x)

    def doubled(self, rows):
        return rows * 2

    def add(self, x):
        self.total.add_(x)
        return self.total * 1.0, x + 1

def make():
    torch.manual_seed(0)
    return Model()
"""
SPEC = """
dims: {n: {min: 1, max: 6}}
state: {private: [total]}
methods:
  caller: {module: ., target: cpu, io: caller, inputs: {x: [3, 16]}, outputs: [a, b]}
  planned: {module: ., target: cpu, inputs: {x: [3, 16]}, outputs: [a, b]}
  rows: {module: ., call: doubled, target: plain, io: caller, inputs: {rows: [n, 2]}}
  add: {module: ., call: add, target: plain, io: caller, inputs: {x: [2]}, outputs: [total, more]}
"""
X = torch.randn(3, 16)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("out")
    (folder / "model.py").write_text(MODEL)
    (folder / "spec.yaml").write_text(HEAD + SPEC)
    with patch.object(objects, "run_jobs", run_here):
        build(folder / "spec.yaml", folder / "out.pte", cache=build_cache)
    return folder / "out.pte"


@pytest.fixture
def program(path: Path) -> Program:
    return load(path)


@pytest.fixture
def expected(path: Path, stock: Any) -> list[torch.Tensor]:
    result: list[torch.Tensor] = stock(path).load_method("planned").execute([X])
    return result


def test_the_spec_decides_whose_memory_it_is(path: Path, stock: Any) -> None:
    program = stock(path)
    for name, planned in (("caller", False), ("planned", True), ("rows", False)):
        meta = program.metadata(name)
        assert meta.input_tensor_meta(0).is_memory_planned() == planned
        assert meta.output_tensor_meta(0).is_memory_planned() == planned


@pytest.mark.parametrize("name", ["caller", "planned"])
def test_results_are_where_they_are_wanted(
    program: Program, name: str, expected: list[torch.Tensor]
) -> None:
    a, b = torch.full((3, 8), 7.0), torch.full((3, 4), 7.0)
    result = program.run_method(name, X, out=[a, b])
    assert result.a is a and result.b is b and result._fields == ("a", "b")
    assert torch.equal(a, expected[0]) and torch.equal(b, expected[1])
    result = program[name](x=-X, out=(None, b))
    assert torch.equal(a, expected[0]) and result.b is b  # a is as it was
    assert torch.equal(result.a, program[name](-X).a)
    assert torch.equal(b, program[name](-X).b)
    assert torch.equal(program.planned(X, out=[a, b]).a, expected[0])  # type: ignore[operator]


def test_a_result_without_a_tensor_for_it_is_nobody_else_s(
    program: Program, expected: list[torch.Tensor]
) -> None:
    first = program.run_method("caller", X)
    a, b = torch.empty(3, 8), torch.empty(3, 4)
    program.run_method("caller", -X, out=[a, b])
    program.run_method("caller", 2 * X)
    assert torch.equal(first.a, expected[0]) and torch.equal(first.b, expected[1])
    again = program.run_method("caller", -X)
    assert torch.equal(a, again.a) and a.data_ptr() != again.a.data_ptr()


def test_any_size_of_a_dynamic_output(program: Program) -> None:
    for n in (6, 1, 4, 6, 2):
        rows, out = torch.randn(n, 2), torch.empty(n, 2)
        assert program.run_method("rows", rows, out=out).out is out
        assert torch.equal(out, rows * 2)
        assert torch.equal(program.run_method("rows", rows).out, rows * 2)
    for n in (6, 5):  # the first of them is of the largest size
        with pytest.raises(CallError, match=rf"out: output 'out': expected \[4, 2\], got \[{n}, 2"):
            program.run_method("rows", torch.randn(4, 2), out=torch.empty(n, 2))


def test_state_in_memory_of_the_caller_s_program(program: Program) -> None:
    total, more = torch.empty(2), torch.empty(2)
    for count in (1.0, 2.0, 3.0):
        program.run_method("add", torch.ones(2), out=[total, more])
        assert total.tolist() == [count] * 2 and more.tolist() == [2.0] * 2
    assert program.run_method("add", torch.ones(2)).total.tolist() == [4.0] * 2
    assert total.tolist() == [3.0] * 2


WRONG = {
    "expected a tensor, or None, for each of 2 outputs, got 1": lambda a, b: [a],
    "for each of 2 outputs, got int": lambda a, b: 3,
    "output 'b': expected a plain tensor, got list": lambda a, b: [a, [1.0]],
    "output 'b': expected dtype float32, got float64": lambda a, b: [a, b.double()],
    r"output 'a': expected \[?.*3, 8\], got \[8, 3\]": lambda a, b: [a.t().contiguous(), b],
    "output 'a': expected a dense, contiguous": lambda a, b: [torch.empty(8, 3).t(), b],
    "output 'a': expected a tensor that can be written": lambda a, b: [a.requires_grad_(), b],
    "output 'a': its memory is also that of an input": lambda a, b: [
        X.flatten()[:24].view(3, 8),
        b,
    ],
    "output 'a': its memory is also": lambda a, b: [a, a.flatten()[:12].view(3, 4)],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_written_to_is_refused(program: Program, message: str) -> None:
    out = WRONG[message](torch.empty(3, 8), torch.empty(3, 4))
    with pytest.raises(CallError, match=message):
        program.run_method("caller", X, out=out)


def test_tensors_are_used_where_they_are(
    program: Program, engine: str, expected: list[torch.Tensor]
) -> None:
    if engine == "stock":
        pytest.skip("it copies")
    a, b = torch.empty(3, 8), torch.empty(3, 4)
    for name, same in (("caller", True), ("planned", False)):
        program.run_method(name, X, out=[a, b])
        native: Any = program._engine
        at = native._methods[name].addresses()
        wanted = [X.data_ptr(), a.data_ptr(), b.data_ptr()]
        assert [one == other for one, other in zip(at, wanted, strict=True)] == [same] * 3
    result = program.run_method("caller", X)
    at = native._methods["caller"].addresses()
    assert at == [X.data_ptr(), result.a.data_ptr(), result.b.data_ptr()]
