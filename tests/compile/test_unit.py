"""Units: submodules found, wrapped, and given inputs by the names that the spec uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .test_model import refused

MODEL = """
class Layer(nn.Module):
    def forward(self, x, scale):
        return x * scale

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(3, 2)
    def forward(self, x, mask=None, *, power=2.0):
        return x - (0 if mask is None else mask)
    def encode(self, a, b):
        return a - 2 * b
    def spread(self, a, *rest):
        return a - 2 * rest[0]
    def keyed(self, a, **rest):
        return a - 2 * rest["b"]

class Twice(nn.Module):
    def __init__(self, module, times=2):
        super().__init__()
        assert times < 10, "too often"
        self.module, self.times = module, times
    def forward(self, x):
        return self.module(x) * self.times

def no_module(module):
    return 3
"""
ONE, TWO = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])


def method(text: str) -> str:
    return "methods:\n  f: {target: plain, " + text + "}\n"


def test_a_submodule_with_inputs_in_another_order_than_its_forward_takes(project: Any) -> None:
    project.model(MODEL).spec(method("module: layers.1, inputs: {scale: [3], x: [3]}"))
    unit = project.units()["f"]
    assert [value.name for value in unit.inputs] == ["scale", "x"]
    assert torch.equal(unit.module(ONE, TWO), TWO)


@pytest.mark.parametrize("module", ['"."', '""'])
def test_the_model_itself(project: Any, module: str) -> None:
    project.model(MODEL).spec(method(f"module: {module}, inputs: {{x: [3]}}"))
    assert torch.equal(project.units()["f"].module(TWO), TWO)


def test_optional_parameters_may_be_given(project: Any) -> None:
    project.model(MODEL).spec(method('module: ".", inputs: {mask: [3], x: [3]}'))
    assert torch.equal(project.units()["f"].module(ONE, TWO), TWO - ONE)


@pytest.mark.parametrize("call", ["encode", "spread", "keyed"])
def test_another_python_method_gets_each_input_where_it_belongs(project: Any, call: str) -> None:
    project.model(MODEL).spec(method(f'module: ".", call: {call}, inputs: {{a: [3], b: [3]}}'))
    assert torch.equal(project.units()["f"].module(ONE, TWO), ONE - 2 * TWO)


def test_inputs_beside_keyword_arguments_are_not_mixed_up(project: Any) -> None:
    project.model(MODEL).spec(method('module: ".", call: keyed, inputs: {b: [3], a: [3]}'))
    assert torch.equal(project.units()["f"].module(ONE, TWO), TWO - 2 * ONE)


def test_a_wrapper_of_the_users_file(project: Any) -> None:
    project.model(MODEL).spec(
        method('module: head, wrapper: "model.py:Twice", args: {times: 3}, inputs: {x: [3]}')
    )
    unit = project.units()["f"]
    assert torch.equal(unit.module(ONE), project.units()["f"].module.module.module(ONE) * 3)
    assert not unit.module.module.training


def test_a_wrapper_of_mmpacks_by_its_name(project: Any) -> None:
    project.model("", "def make(): return nn.Embedding(5, 3)").spec(
        method(
            'module: ".", wrapper: embedding, '
            "inputs: {tokens: {shape: [1, 4], dtype: int64, range: 0..4}}"
        )
    )
    assert project.units()["f"].module(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("module: layer.1, inputs: {x: [3]}", "no module 'layer.1'; did you mean 'layers.1'"),
        ("module: zzz, inputs: {x: [3]}", "the model has no module 'zzz'; known: head, layers"),
        ("module: head.weight, inputs: {x: [3]}", "the model has no module 'head.weight'"),
        (
            'module: ".", call: encod, inputs: {a: [3]}',
            "Model has no method 'encod'; did you mean 'encode'?",
        ),
        (
            'module: ".", inputs: {x: [3], maks: [3]}',
            "Model.forward takes no input 'maks'; did you mean 'mask'?",
        ),
        (
            "module: layers.0, inputs: {x: [3]}",
            "Layer.forward also needs 'scale', which the spec does not list",
        ),
        (
            'module: ".", call: spread, inputs: {b: [3], a: [3]}',
            "Model.spread takes a first, in that order",
        ),
        (
            'module: head, wrapper: "model.py:Twice", args: {times: 12}, inputs: {x: [3]}',
            "making model.py:Twice of 'head' with {'times': 12} failed: AssertionError: too often",
        ),
        (
            'module: head, wrapper: "model.py:Twice", args: {tims: 12}, inputs: {x: [3]}',
            "TypeError: Twice.__init__() got an unexpected keyword argument 'tims'",
        ),
        (
            "module: head, wrapper: qkv_proj, args: {head_dim: 8}, inputs: {x: [3]}",
            "making qkv_proj of 'head' with {'head_dim': 8}: Linear is not made as ",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused(project: Any, text: str, says: str) -> None:
    project.model(MODEL).spec(method(text))
    message = refused(project, project.units)
    assert says in message
    assert "methods.f" in message


def test_a_wrapper_that_makes_no_module_is_refused(project: Any) -> None:
    project.model(MODEL + "\nMaker = no_module\n").spec(
        method('module: head, wrapper: "model.py:Maker", inputs: {x: [3]}')
    )
    message = refused(project, project.units)
    assert "model.py:Maker made an int, expected a torch.nn.Module" in message


def test_a_model_without_submodules_names_no_nearest_one(project: Any) -> None:
    project.model("", "def make(): return nn.Linear(3, 3)").spec(
        method("module: inner, inputs: {x: [3]}")
    )
    assert "the model has no module 'inner'\n" in refused(project, project.units)
