"""In what two versions of a method differ, in words: exactly what was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmpack.multimethod.compile import fingerprint
from mmpack.multimethod.compile.fingerprint import Print, fingerprints
from mmpack.multimethod.compile.ingredients import decided_parts, differences
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.unit import make_units

MODEL = """
from helper import helped
LIMIT = 1.0

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(3) for _ in range(6)])
        self.number = 1
    def forward(self, x):
        for norm in self.norms:
            x = norm(x)
        return helped(self.linear(x))

class Wrapper(nn.Module):
    def __init__(self, module, power=2):
        super().__init__()
        self.inner, self.power = module, power
    def forward(self, x): return self.inner(x) ** self.power
"""
HELPER = """
def helped(x):
    return x + 1

def other(x):
    return x
"""
SPEC = """
mmpack: 1
model: {factory: model.py:make}
dims: {n: {min: 1, max: 8}}
targets: {t: {backend: xnnpack, precision: 8da8w}}
methods:
  f: {module: ".", wrapper: "model.py:Wrapper", args: {power: 2}, target: t, inputs: {x: [n, 3]}}
"""


@pytest.fixture
def made(project: Any) -> Any:
    project.model(MODEL)
    project.file("helper.py", HELPER)
    project.file("spec.yaml", SPEC)
    return project


def prints(project: Any, change: Callable[[Any], None] = lambda model: None) -> Print:
    spec_file, model = project.checked, project.load_model()
    change(model)
    return fingerprints(make_units(spec_file, model), state_names(model))["f"]


def told(old: Print, new: Print) -> list[str]:
    """And that nothing is told of what does not differ, and something of what does."""
    found = differences(old.parts, new.parts)
    assert bool(found) == (old.digest != new.digest)
    return found


def test_what_is_the_same_differs_in_nothing(made: Any) -> None:
    assert told(prints(made), prints(made)) == []


def _weight(model: Any) -> None:
    with torch.no_grad():
        model.linear.weight[0, 0] += 1e-6


def _norms(model: Any) -> None:
    with torch.no_grad():
        for norm in model.norms:
            norm.weight.mul_(2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_weight, ["weight 'linear.weight' changed"]),
        (
            _norms,
            [
                "weight 'norms.0.weight', 'norms.1.weight', 'norms.2.weight', 'norms.3.weight' "
                "and 2 more changed"
            ],
        ),
        (lambda m: setattr(m, "number", 2), ["attribute 'inner.number' is 2, was 1"]),
        (lambda m: setattr(m, "more", [1, 2]), ["attribute 'inner.more' is new: [\"list\", 1, 2]"]),
        (lambda m: delattr(m, "number"), ["attribute 'inner.number' is gone"]),
        (
            lambda m: m.register_forward_hook(lambda module, args, out: out * 2),
            ["hook or local class of submodule 'inner' changed"],
        ),
        (
            lambda m: setattr(m, "linear", torch.nn.Identity()),
            [
                "class of submodule 'inner.linear' is "
                '"torch.nn.modules.linear.Identity", was "torch.nn.modules.linear.Linear"',
                "attribute 'inner.linear.in_features', 'inner.linear.out_features' is gone",
                "weight 'linear.weight', 'linear.bias' is gone",
            ],
        ),
        (
            lambda m: m.norms.append(torch.nn.Identity()),
            ["class of submodule 'inner.norms.6' is new: \"torch.nn.modules.linear.Identity\""],
        ),
    ],
)
def test_a_change_of_the_module_is_named(
    made: Any, change: Callable[[Any], None], says: list[str]
) -> None:
    assert told(prints(made), prints(made, change)) == says


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("model.py", "** self.power", "* self.power", ["code of Wrapper in model.py changed"]),
        ("model.py", "LIMIT = 1.0", "LIMIT = 2.0", ["code of LIMIT in model.py changed"]),
        ("helper.py", "return x + 1", "return x + 2", ["code of helped in helper changed"]),
        ("helper.py", "def other(x):", "# a remark\ndef other(x):", [
            "text of file 'helper' changed"]),
        ("helper.py", "def other(x):", "def another(x):", [
            "code of another in helper is new", "code of other in helper is gone"]),
        ("spec.yaml", "max: 8", "max: 9", [
            'dim \'n\' is {"max": 9, "min": 1, "step": 1}, was {"max": 8, "min": 1, "step": 1}']),
        ("spec.yaml", "[n, 3]", "[4, 3]", [
            "input 'x' is {\"dtype\": \"float32\", \"shape\": [4, 3]}, "
            "was {\"dtype\": \"float32\", \"shape\": [\"n\", 3]}", "dim 'n' is gone"]),
        ("spec.yaml", "precision: 8da8w", "precision: 8da4w", [
            "target option 'precision' is \"8da4w\", was \"8da8w\""]),
        ("spec.yaml", ", precision: 8da8w", "", ["target option 'precision' is gone"]),
        ("spec.yaml", "xnnpack, precision: 8da8w", "portable", [
            'backend is "portable", was "xnnpack"', "target option 'precision' is gone"]),
        ("spec.yaml", "power: 2", "power: 3", ["attribute 'power' is 3, was 2"]),
        ("spec.yaml", "{x: [n, 3]}", "{x: [n, 3]}, io: caller", [
            "setting 'io' is \"caller\", was \"planned\""]),
    ],
)  # fmt: skip
def test_a_change_of_a_file_is_named(
    made: Any, file: str, old: str, new: str, says: list[str]
) -> None:
    before = prints(made)
    path = made.folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert told(before, prints(made)) == says


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("torch", "0.0.1", "version of 'torch' is \"0.0.1\", was "),
        ("executorch", "0.0.1", "version of 'executorch' is \"0.0.1\", was "),
    ],
)
def test_another_version_is_named(
    made: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    before = prints(made)
    here = fingerprint.installed
    monkeypatch.setattr(fingerprint, "installed", lambda n: value if n == name else here(n))
    fingerprint._versions.cache_clear()
    (line,) = told(before, prints(made))
    fingerprint._versions.cache_clear()
    assert line.startswith(says)


def test_another_mmpack_is_named(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prints(made)
    here = fingerprint.hash_file
    monkeypatch.setattr(
        fingerprint, "hash_file", lambda p: "0" if p.name == "export.py" else here(p)
    )
    fingerprint._versions.cache_clear()
    assert told(before, prints(made)) == ["mmpack's own file 'export.py' changed"]
    fingerprint._versions.cache_clear()


def test_what_is_settled_between_methods_is_named() -> None:
    plain = decided_parts([], None)
    assert differences(plain, decided_parts([], None)) == []
    assert differences(plain, decided_parts(["cache"], None)) == [
        "mark as shared state of buffer 'cache' is new"
    ]
    calls = decided_parts([], [["a"], [["x", 0, 1]]])
    assert differences(calls, decided_parts([], [["b"], [["x", 0, 1]]])) == [
        "calibration's 'calls' changed"
    ]
    assert differences(calls, decided_parts([], [["a"], [["x", 0, 2]]])) == [
        "calibration's 'ranges' changed"
    ]
