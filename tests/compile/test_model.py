"""The model of a spec: made by its factory, with its weights; mistakes come with their line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from mmpack.multimethod.errors import ModelError, SpecError

ONE = """
methods:
  f: {module: ".", target: plain, inputs: {x: [3]}}
"""
MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
    def forward(self, x):
        return self.inner(x)
"""


def head(model: str) -> str:
    return f"mmpack: 1\nmodel: {model}\ntargets: {{plain: {{backend: portable}}}}\n"


def refused(project: Any, make: Callable[[], object] | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        (make or project.load_model)()
    message = str(caught.value)
    # The place in the spec, then the line itself with marks under what is meant.
    assert re.match(rf"{re.escape(str(project.path))}:\d+:\d+: .*", message), message
    assert "^" in message
    return message


def test_factory_of_a_file_may_import_neighbours_also_when_it_is_called(project: Any) -> None:
    project.file("sizes.py", "SIZE = 3\n")
    project.file("late.py", "from sizes import SIZE\n")
    project.model(
        "from sizes import SIZE\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    size: int = SIZE\n" + MODEL,
        "def make():\n    import late\n    assert late.SIZE == Config().size\n    return Model()\n",
    ).spec(ONE)
    assert isinstance(project.load_model(), torch.nn.Module)


def test_factory_of_a_module_beside_the_spec(project: Any) -> None:
    project.file("zoo/__init__.py", "")
    project.file(
        "zoo/small.py", "from torch import nn\ndef make(size): return nn.Linear(size, 1)\n"
    )
    project.spec(ONE, head("{factory: 'zoo.small:make', args: {size: 3}}"))
    assert project.load_model().in_features == 3


def test_factory_may_be_a_method_of_a_class(project: Any) -> None:
    project.model(MODEL + "\nclass Zoo:\n    make = staticmethod(lambda: Model())\n")
    project.spec(ONE, head("{factory: model.py:Zoo.make}"))
    project.load_model()


def test_two_folders_with_files_of_the_same_name_do_not_meet(project: Any) -> None:
    for name, bias in (("a", "True"), ("b", "False")):
        project.file(f"{name}/helper.py", f"BIAS = {bias}\n")
        project.file(
            f"{name}/model.py",
            "from torch import nn\nimport helper\n"
            "def make(): return nn.Linear(3, 3, bias=helper.BIAS)\n",
        )
        project.file(f"{name}/spec.yaml", head("{factory: model.py:make}") + ONE)
    from mmpack.multimethod.compile.model import load_model
    from mmpack.multimethod.spec import load_spec

    first, second, again = (
        load_model(load_spec(project.folder / name / "spec.yaml")) for name in ("a", "b", "a")
    )
    assert first.bias is not None and second.bias is None and again.bias is not None


def test_an_edited_neighbour_is_imported_anew(project: Any) -> None:
    project.file("helper.py", "SIZE = 3\n")
    project.model("import helper\n", "def make(): return nn.Linear(helper.SIZE, 1)\n").spec(ONE)
    assert project.load_model().in_features == 3
    project.file("helper.py", "SIZE = 14\n")
    assert project.load_model().in_features == 14


def test_model_is_in_eval_mode_and_wants_no_gradients(project: Any) -> None:
    model = project.model(MODEL).spec(ONE).load_model()
    assert not model.training and not model.inner.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ("def make(): raise RuntimeError('no disk')", "failed: RuntimeError: no disk"),
        ("def make(): raise SystemExit(3)", "failed: SystemExit: 3"),
        ("def make(size): return Model()", "failed: TypeError: make() missing 1 required"),
        ("def make(): return 3", "returned an int, expected a torch.nn.Module"),
        ("make = 3", "is an int, not a callable"),
        ("1 / 0\ndef make(): return Model()", "importing model.py failed: ZeroDivisionError"),
        ("import nowhere\ndef make(): ...", "importing model.py failed: ModuleNotFoundError"),
        ("from torch import *", "model.py has no 'make';"),
        ("def make(): return Model().to('meta')", "is on the device 'meta', expected the CPU"),
    ],
)
def test_factory_that_makes_no_model_is_refused(project: Any, make: str, says: str) -> None:
    project.model(MODEL, make).spec(ONE)
    message = refused(project)
    assert says in message
    assert "model.factory" in message


def test_factory_whose_file_vanished_is_refused(project: Any) -> None:
    project.model(MODEL).spec(ONE)
    spec_file = project.checked
    (project.folder / "model.py").unlink()
    from mmpack.multimethod.compile.model import load_model

    assert "FileNotFoundError" in refused(project, lambda: load_model(spec_file))


class TestWeights:
    """Loaded strictly from one safetensors file."""

    @pytest.fixture
    def weighed(self, project: Any) -> Any:
        project.model(MODEL).spec(ONE, head("{factory: model.py:make, weights: w.safetensors}"))
        self.save(project, {"inner.weight": torch.eye(3), "inner.bias": torch.arange(3.0)})
        return project

    def save(self, project: Any, tensors: dict[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(tensors, project.folder / "w.safetensors")

    def test_they_replace_the_models_own(self, weighed: Any) -> None:
        assert torch.equal(weighed.load_model()(torch.ones(3)), torch.tensor([1.0, 2.0, 3.0]))

    @pytest.mark.parametrize(
        ("weights", "says"),
        [
            ({"inner.weight": torch.eye(3)}, ["missing key 'inner.bias'"]),
            (
                {"inner.weight": torch.eye(3), "inner.bais": torch.ones(3)},
                ["missing key 'inner.bias'; did you mean 'inner.bais'", "unexpected key"],
            ),
            (
                {"inner.weight": torch.eye(4), "inner.bias": torch.ones(3)},
                ["'inner.weight' has shape [4, 4], the model wants [3, 3]"],
            ),
            (
                {"inner.weight": torch.eye(3).half(), "inner.bias": torch.ones(3)},
                ["'inner.weight' has dtype float16, the model wants float32"],
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, weighed: Any, weights: dict[str, torch.Tensor], says: list[str]
    ) -> None:
        self.save(weighed, weights)
        message = refused(weighed)
        assert all(text in message for text in says), message
        assert "model.weights" in message

    def test_a_damaged_file_is_refused(self, weighed: Any) -> None:
        path = weighed.folder / "w.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
        assert "cannot be read" in refused(weighed)

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 64])
    def test_what_is_no_safetensors_file_is_refused(self, weighed: Any, content: bytes) -> None:
        (weighed.folder / "w.safetensors").write_bytes(content)
        says = "is empty" if not content else "is something else"
        with pytest.raises(SpecError, match=rf"model\.weights: expected a safetensors .* {says}"):
            weighed.load_model()

    def test_tied_weights_need_one_name_only(self, project: Any) -> None:
        project.model(
            """
            class Model(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
                    self.b.weight = self.a.weight
                def forward(self, x):
                    return self.a(x) + self.b(x)
            """
        ).spec(ONE, head("{factory: model.py:make, weights: w.safetensors}"))
        self.save(project, {"b.weight": torch.eye(3)})
        model = project.load_model()
        assert model.a.weight is model.b.weight and torch.equal(model.a.weight, torch.eye(3))
        self.save(project, {"a.weight": torch.eye(3), "b.weight": torch.zeros(3, 3)})
        assert "are one tensor in the model, and differ" in refused(project)
