"""Dotted names as attributes and indices: each leads to the method of that name, and a name that
several sizes begin with to the one that its inputs fit."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from mmpack.multimethod import CallError, load
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.runtime.parts import Part

from ..compile.projects import Project

MODEL = """
class Layer(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number
    def up(self, x, y):
        return x + self.number, y * 2
    def down(self, x):
        return x - self.number

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(n) for n in range(11)])
    def forward(self, x):
        return -x
"""
SPEC = """
dims: {chunk: 4, one: 1, any: {min: 1, max: 4}}
methods:
  layers.{i}.up.{n}:
    each: {i: [0, 10, 2], n: [chunk, one]}
    module: layers.{i}
    call: up
    target: plain
    inputs: {x: ["{n}", 2], y: [3]}
    outputs: [sum, double]
  layers.2.down: {module: layers.2, call: down, target: plain, inputs: {x: [2]}}
  forward: {module: ".", target: plain, inputs: {x: [2]}}
  path.x: {module: ".", target: plain, inputs: {x: [2]}}
  both.fixed: {module: ".", target: plain, inputs: {x: [chunk]}}
  both.dynamic: {module: ".", target: plain, inputs: {x: [any]}}
  norm: {module: ".", target: plain, inputs: {x: [2]}}
  norm.long: {module: ".", target: plain, inputs: {x: [3]}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    project = Project(tmp_path_factory.mktemp("parts"), build_cache)
    project.model(MODEL).spec(SPEC).build()
    return project.output


@pytest.fixture(scope="module")
def program(built: Path) -> Program:
    return load(built)


X, ONE, Y = torch.randn(4, 2), torch.randn(1, 2), torch.randn(3)


def test_every_name_leads_to_its_method(program: Program) -> None:
    for name in program:
        place: object = program
        for part in name.split("."):
            if name == "path.x" and part == "path":
                place = Part(program, "path")  # `program.path` is something else
            else:
                place = place[int(part)] if part.isdecimal() else getattr(place, part)
        if name == "norm":
            assert isinstance(place, Part)
        else:
            assert place is program[name]
    assert program.layers["10"]["up"]["one"] is program["layers.10.up.one"]


def test_a_method_is_called_by_its_parts(program: Program) -> None:
    result = program.layers[2].up.chunk(X, y=Y)
    assert result._fields == ("sum", "double")
    assert torch.equal(result.sum, X + 2) and torch.equal(result.double, Y * 2)
    assert torch.equal(program.forward(Y[:2]).out, -Y[:2])


@pytest.mark.parametrize("x", [X, ONE], ids=["chunk", "one"])
def test_the_size_that_admits_the_inputs_runs(program: Program, x: torch.Tensor) -> None:
    for result in (
        program.layers[10].up(x, Y),
        program.layers[10].up(y=Y, x=x),
        program.run_method("layers.10.up", x, Y),
        program.run_method("layers.10.up", x, y=Y),
    ):
        assert torch.equal(result.sum, x + 10) and torch.equal(result.double, Y * 2)
    assert torch.equal(program.run_method("both", Y).out, -Y)


def test_none_or_several_sizes(program: Program) -> None:
    with pytest.raises(CallError) as raised:
        program.layers[0].up(X[:2], y=Y.double())
    assert str(raised.value) == (
        "layers.0.up: none of its sizes admits (float32[2, 2], y: float64[3])\n"
        "  layers.0.up.chunk(x: float32[chunk=4, 2], y: float32[3])"
        " -> (sum: float32[4, 2], double: float32[3])\n"
        "  layers.0.up.one(x: float32[one=1, 2], y: float32[3])"
        " -> (sum: float32[1, 2], double: float32[3])"
    )
    with pytest.raises(CallError) as raised:
        program.run_method("both", X[:, 0])
    assert str(raised.value) == (
        "both: several of its sizes admit (float32[4])\n"
        "  both.fixed(x: float32[chunk=4]) -> (out: float32[4])\n"
        "  both.dynamic(x: float32[any=1..4]) -> (out: float32[any])"
    )


def test_parts_that_are_no_sizes_of_one_method_are_not_called(program: Program) -> None:
    """`layers.2` has two methods, of which one would admit what `down` takes."""
    told = r"'layers\.2' is no method; its parts are up, down$"
    with pytest.raises(CallError, match=told):
        program.layers[2](Y[:2])
    with pytest.raises(CallError, match=r"'layers' is no method; its parts are 0, 10, 2$"):
        program.run_method("layers", Y[:2])


def test_a_name_that_is_a_method_and_a_beginning_is_the_method(program: Program) -> None:
    assert torch.equal(program.norm(Y[:2]).out, -Y[:2])
    assert torch.equal(program.norm.long(Y).out, -Y)
    with pytest.raises(CallError, match=r"^norm: input 'x': axis 0: expected 2, got 3"):
        program.norm(Y)


def test_what_a_program_has_itself_wins(program: Program, built: Path) -> None:
    assert program.path == built
    assert program.flows == {} and dict(program.files) == {}
    assert torch.equal(program["path.x"](Y[:2]).out, -Y[:2])


def test_numbers_make_a_list(program: Program) -> None:
    layers = program.layers
    assert isinstance(layers, Part) and len(layers) == 3
    assert [repr(layer).partition("(")[0] for layer in layers] == [
        "layers.0.up.chunk", "layers.2.up.chunk", "layers.10.up.chunk",
    ]  # fmt: skip
    assert repr(layers[-1]) == repr(layers[10]) and repr(layers[-3]) == repr(layers[0])
    assert layers and layers[0]
    with pytest.raises(TypeError, match=r"^'both' is no list: its parts are fixed, dynamic$"):
        list(program.both)
    assert program.both


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("program.layer", "no method 'layer'; did you mean 'layers'?"),
        ("program.layers[0].u", "'layers.0' has no part 'u'; did you mean 'up'?"),
        ("program.layers[2].dwon", "'layers.2' has no part 'dwon'; did you mean 'down'?"),
        ("program.layers[1]", "'layers' has no part '1'; known: 0, 2, 10"),
        ("program.layers[-4]", "'layers' has 3 parts, and no -4"),
        ("program.layers[0].up.on", "'layers.0.up' has no part 'on'; did you mean 'one'?"),
    ],
)
def test_a_wrong_part_says_the_nearest(code: str, told: str, program: Program) -> None:
    for kind in (AttributeError, LookupError):
        with pytest.raises(kind, match=re.escape(told) + "$"):
            eval(code, {"program": program})


def test_python_asks_in_its_own_ways(program: Program) -> None:
    assert hasattr(program, "layers") and not hasattr(program, "layer")
    assert getattr(program.layers, "x", None) is None
    assert not hasattr(program.layers, "__wrapped__") and not hasattr(program, "__wrapped__")
    assert {"layers", "forward", "norm", "run_method", "flows", "files"} <= set(dir(program))
    assert {"up", "down"} <= set(dir(program.layers[2]))
    assert "2" not in dir(program.layers)
    assert repr(copy.copy(program.layers)) == repr(program.layers)
    with pytest.raises(AttributeError):
        copy.copy(program.__new__(Program)).layers  # noqa: B018


def test_a_part_shows_its_methods(program: Program) -> None:
    assert repr(program.layers[2]) == "\n".join(
        repr(program[name]) for name in ("layers.2.up.chunk", "layers.2.up.one", "layers.2.down")
    )
    assert repr(program.norm) == f"{program['norm']!r}\n{program['norm.long']!r}"
