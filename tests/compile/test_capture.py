"""Shapes taken from one run of the model on the spec's sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmpack.multimethod.compile.capture import capture
from mmpack.multimethod.signature import ValueSpec

from .test_model import refused

MODEL = """
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.log = []
    def forward(self, x, index, mask=None):
        self.seen += 1
        self.log.append(tuple(x.shape))
        return x + index

class Flagged(nn.Module):
    def forward(self, x, flag):
        return x

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken down")

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.flagged, self.unused = Inner(), Flagged(), Inner()
        self.broken = Broken()
        self.register_buffer("steps", torch.zeros(2))
    def forward(self, x, index, fail=None):
        self.steps = self.steps + 1
        y = self.inner(x * 2, index=index, mask=None)
        self.inner(y[:1], index[:1])
        self.flagged(y, True)
        return self.broken(y) if fail is not None else self.help(y, index)
    def help(self, value, by):
        return value * by

def sample():
    return torch.zeros(5, 3), torch.tensor([[2], [7], [4], [3], [5]])

def named_sample():
    return {"index": torch.ones(5, 1, dtype=torch.int64), "x": torch.zeros(5, 3)}

def failing_sample():
    return torch.zeros(5, 3), torch.ones(5, 1, dtype=torch.int64), torch.ones(1)

def raising_sample():
    raise OSError("no sample")
"""
RANDOM = "{x: [n, 3], index: {shape: [n, 1], dtype: int64, range: 2..9}}"
DIMS = "dims: {n: {min: 1, max: 6}, many: {min: 7, max: 9}}\n"


def spec(sample: str, method: str) -> str:
    return f"{DIMS}sample: {sample}\nmethods:\n  f: {{target: plain, {method}}}\n"


def inputs(project: Any) -> tuple[ValueSpec, ...]:
    return project.units()["f"].inputs  # type: ignore[no-any-return]


def test_shapes_dtypes_and_ranges_of_the_first_call(project: Any) -> None:
    project.model(MODEL).spec(spec("model.py:sample", "module: inner"))
    unit = project.units()["f"]
    assert unit.inputs == (
        ValueSpec("x", "float32", (5, 3)),
        ValueSpec("index", "int64", (5, 1)),
    )
    assert unit.ranges == {"index": (2, 7)}


def test_a_sample_may_be_given_by_name(project: Any) -> None:
    project.model(MODEL).spec(spec("model.py:named_sample", "module: inner"))
    assert [value.shape for value in inputs(project)] == [(5, 3), (5, 1)]


def test_a_random_sample_has_every_dim_at_its_maximum(project: Any) -> None:
    project.model(MODEL).spec(spec(RANDOM, "module: inner"))
    unit = project.units()["f"]
    assert [value.shape for value in unit.inputs] == [(6, 3), (6, 1)]
    low, high = unit.ranges["index"]
    assert 2 <= low <= high <= 9


def test_another_python_method_is_captured_too(project: Any) -> None:
    project.model(MODEL).spec(spec("model.py:sample", 'module: ".", call: help'))
    assert [value.name for value in inputs(project)] == ["value", "by"]


def test_axes_become_dims(project: Any) -> None:
    project.model(MODEL).spec(
        spec("model.py:sample", "module: inner, axes: {x: {0: n}, index: {0: n}}")
    )
    unit = project.units()["f"]
    assert [value.shape for value in unit.inputs] == [("n", 3), ("n", 1)]
    assert list(unit.dims) == ["n"]


@pytest.mark.parametrize(
    ("sample", "method", "says"),
    [
        ("model.py:sample", "module: unused", "the sample never called 'unused'"),
        (
            "model.py:sample",
            "module: flagged",
            "Flagged.forward is given a bool as 'flag' in the sample run; captured inputs must be",
        ),
        (
            "model.py:sample",
            "module: inner, axes: {x: {2: n}}",
            "'x' has 2 axes, there is no axis 2",
        ),
        (
            "model.py:sample",
            "module: inner, axes: {y: {0: n}}",
            "no captured input is called 'y'; known: index, x",
        ),
        (
            "model.py:sample",
            "module: inner, axes: {x: {0: many}}",
            "axis 0 of 'x' was 5 in the sample run, which many=7..9 does not admit",
        ),
        ("model.py:raising_sample", "module: inner", "failed: OSError: no sample"),
        ("model.py:failing_sample", "module: inner", "failed: RuntimeError: broken down"),
        ("{x: [5, 3]}", "module: inner", "missing 1 required positional argument: 'index'"),
        ("model.py:sample", 'module: ".", call: hlep', "no method 'hlep'; did you mean 'help'"),
    ],
)
def test_what_cannot_be_captured_is_refused(
    project: Any, sample: str, method: str, says: str
) -> None:
    project.model(MODEL).spec(spec(sample, method))
    assert says in refused(project, project.units)


@pytest.mark.parametrize("sample", ["sample", "failing_sample"])
def test_the_model_is_left_as_it_was(project: Any, sample: str) -> None:
    project.model(MODEL).spec(spec(f"model.py:{sample}", "module: inner, axes: {}"))
    spec_file, model = project.checked, project.load_model()
    steps = model.steps
    points = {(model.inner, "forward"): "f", (model, "help"): "f"}
    if sample == "failing_sample":
        with pytest.raises(Exception, match="broken down"):
            capture(spec_file, model, points)
    else:
        assert set(capture(spec_file, model, points)) == set(points)
    assert model.steps is steps and steps.tolist() == [0, 0]  # replaced in the run
    assert model.inner.seen.item() == 0  # written in the run
    assert not model.inner._forward_pre_hooks
    assert "help" not in vars(model)


def test_a_method_that_is_already_replaced_on_the_instance_stays_so(project: Any) -> None:
    project.model(MODEL).spec(spec("model.py:sample", 'module: ".", call: help'))
    spec_file, model = project.checked, project.load_model()
    own = model.help
    object.__setattr__(model, "help", own)
    capture(spec_file, model, {(model, "help"): "f"})
    assert vars(model)["help"] is own


def test_a_random_sample_is_the_same_every_time(project: Any) -> None:
    from mmpack.multimethod.compile.capture import sample_inputs

    project.model(MODEL).spec(spec(RANDOM, "module: inner"))
    one, two = (sample_inputs(project.checked)[1] for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
