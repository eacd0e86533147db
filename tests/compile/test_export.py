"""Exported units: dims that stay dynamic or are refused, outputs' names and shapes, buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmpack.multimethod.errors import CompileError, ModelError

DIMS = """
dims:
  n: {min: 1, max: 64}
  m: {min: 1, max: 64}
  two: {min: 1, max: 2}
  deux: {min: 1, max: 2}
  kv: {min: 8, max: 64, step: 8}
  chunk: 4
"""


def exported(project: Any, forward: str, inputs: str, more: str = "", init: str = "pass") -> Any:
    """One method `f` of a model with this `forward`, exported."""
    project.model(
        f"""
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        {init}
    def forward(self, {", ".join(_names(inputs))}):
        {forward}
"""
    ).spec(f"{DIMS}methods:\n  f: {{module: '.', target: plain, inputs: {{{inputs}}}{more}}}\n")
    return project.export()


def _names(inputs: str) -> list[str]:
    return [part.split(":")[0].strip() for part in inputs.split("], ")]


@pytest.mark.parametrize(
    ("forward", "inputs", "prints"),
    [
        ("return x + 1", "x: [2, 3]", "f(x: float32[2, 3]) -> (out: float32[2, 3])"),
        ("return x + 1", "x: [chunk, 3]", "f(x: float32[chunk=4, 3]) -> (out: float32[4, 3])"),
        (
            "return x @ y",
            "x: [m, 3], y: [3, n]",
            "f(x: float32[m=1..64, 3], y: float32[3, n=1..64]) -> (out: float32[m, n])",
        ),
        (
            "return x @ y",  # too narrow for two sizes that differ
            "x: [two, 3], y: [3, deux]",
            "f(x: float32[two=1..2, 3], y: float32[3, deux=1..2]) -> (out: float32[two, deux])",
        ),
        (
            "return torch.cat([x, y]), torch.cat([x, x]), torch.cat([x, torch.ones(32)])",
            "x: [n], y: [m]",
            "f(x: float32[n=1..64], y: float32[m=1..64]) -> "
            "(out_0: float32[m + n], out_1: float32[2*n], out_2: float32[n + 32])",
        ),
        (
            "return x.view(-1, 8), torch.cat([x, x]), x[1:]",
            "x: [kv]",
            "f(x: float32[kv=8..64:8]) -> "
            "(out_0: float32[kv/8, 8], out_1: float32[2*kv], out_2: float32[kv - 1])",
        ),
        ("return x.sum()", "x: [n]", "f(x: float32[n=1..64]) -> (out: float32[])"),
    ],
)
def test_shapes_are_told_in_terms_of_the_specs_dims(
    project: Any, forward: str, inputs: str, prints: str
) -> None:
    assert str(exported(project, forward, inputs).signature) == prints


@pytest.mark.parametrize(
    ("forward", "dim"),
    [
        ("return x * int(x.shape[0])", "n"),
        ("return x + torch.full((3,), float(x.shape[0])).sum()", "n"),
        ("return x.reshape(1, 32)", "n"),
        ("return x + 1 if x.shape[0] > 40 else x + 2", "n"),
        ("return x + 1 if x.shape[0] % 2 else x + 2", "n"),
        ("return x + torch.ones(32)", "n"),
        # torch.export itself accepts these: it does not look at guards of a stepped dim.
        ("return x + 1 if x.shape[0] > 40 else x + 2", "kv"),
        ("return x + 1 if x.shape[0] % 32 == 0 else x + 2", "kv"),
        ("return x + 1 if x.shape[0] // 8 % 2 == 0 else x + 2", "kv"),
        ("return x + 1 if x.shape[0] % 24 == 0 else x + 2", "kv"),
        ("return x + 1 if x.shape[0] == 48 else x + 2", "kv"),
        ("return x.view(-1, 32).sum(0)", "kv"),
        ("return x.view(-1, 32).sum(0)", "n"),
    ],
)
def test_a_dim_that_the_module_fixes_or_narrows_is_refused(
    project: Any, forward: str, dim: str
) -> None:
    with pytest.raises((CompileError, ModelError)) as caught:
        exported(project, forward, f"x: [{dim}]")
    first = str(caught.value).partition("\n")[0]
    assert first.startswith(f"{project.path}:13:") and ": methods.f" in first
    assert f"'{dim}'" in first or f"{dim}=" in first


def test_sizes_that_two_inputs_must_share_need_one_dim(project: Any) -> None:
    with pytest.raises(
        ModelError, match=r"methods\.f\.inputs: running it on .* failed: RuntimeError: The size"
    ):
        exported(project, "return x + y", "x: [m], y: [n]")
    signature = exported(project, "return x + y", "x: [n], y: [n]").signature
    assert str(signature).endswith("-> (out: float32[n])")


@pytest.mark.parametrize(
    ("returned", "more", "names"),
    [
        ("return x", "", ["out"]),
        ("return x, x + 1", "", ["out_0", "out_1"]),
        ("return {'b': x * 3, 'a': x + 1}", "", ["b", "a"]),
        ("return Pair(left=x, right=x + 1)", "", ["left", "right"]),
        ("return {'b': x * 3, 'a': x + 1}", ", outputs: [first, second]", ["first", "second"]),
        ("return {'pair': (x, x + 1)}", "", ["out_0", "out_1"]),
        ("return [x]", ", outputs: only", ["only"]),
    ],
)
def test_outputs_are_named_by_the_spec_or_by_what_is_returned(
    project: Any, returned: str, more: str, names: list[str]
) -> None:
    forward = "from collections import namedtuple; Pair = namedtuple('Pair', 'left right'); "
    made = exported(project, forward + returned, "x: [3]", more)
    assert [value.name for value in made.signature.outputs] == names


@pytest.mark.parametrize(
    ("forward", "more", "says"),
    [
        (
            "return x, x",
            ", outputs: [a]",
            "outputs: the spec names one output (a), the module returns 2 of shapes [3], [3]",
        ),
        ("return x", ", outputs: [a, b]", "the spec names 2 outputs (a, b), the module returns 1"),
        ("return x, 3", "", "returns (Tensor, int); only tensors can be outputs"),
        ("return None", "", "returns (NoneType); only tensors can be outputs"),
        ("return ()", "", "returns (); only tensors can be outputs"),
        ("raise KeyError('lost')", "", "running it on x float32[3] failed: KeyError: 'lost'\n"),
        ("return x if x.sum() > 0 else -x", "", "torch.export failed: GuardOnDataDependentSymNode"),
        ("return x.add_(1)", "", "the module changes its input 'x' in place"),
        ("return self.w.add_(x)", "", "the module changes 'w', which is no buffer"),
        ("self.b = self.b + x; return x", "", "another tensor in the place of buffer 'b'"),
        ("self.plain.add_(x); return x", "", "torch.export failed: RuntimeError: Constant"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(
    project: Any, forward: str, more: str, says: str
) -> None:
    init = (
        "self.w = nn.Parameter(torch.ones(3)); self.plain = torch.ones(3); "
        "self.register_buffer('b', torch.ones(3))"
    )
    with pytest.raises((CompileError, ModelError)) as caught:
        exported(project, forward, "x: [3]", more, init)
    assert str(caught.value).startswith(f"{project.path}:13:")
    assert ": methods.f" in str(caught.value)
    assert says in str(caught.value)


def test_what_torch_export_refuses_is_told_with_the_users_line_and_without_advice(
    project: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CompileError) as caught:
        exported(project, "return x if x.sum() > 0 else -x", "x: [3]")
    first, at, *excerpt = str(caught.value).splitlines()
    assert "Could not guard on data-dependent expression" in first
    source = (project.folder / "model.py").read_text().splitlines()
    line = next(n for n, text in enumerate(source, 1) if "x.sum()" in text)
    assert at.startswith(f"  at {project.folder}/model.py:{line}, in forward: return x if x.sum()")
    assert len(excerpt) == 2  # the spec's line, and the marks under it
    assert "aten.sum" not in capfd.readouterr().err


STATE = """
class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(4, 3))
        self.register_buffer("count", torch.full((1,), 7.0), persistent=False)
        self.register_buffer("unused", torch.zeros(2))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cache = Cache()
        self.alias = self.cache
        self.module = nn.Linear(3, 3, bias=False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.module.weight
        self.weight = nn.Parameter(torch.ones(3))
    def forward(self, x):
        {forward}

class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model.cache
        self.register_buffer("own", torch.zeros(3))
    def forward(self, x):
        self.own.add_(x)
        return self.inner.rows + self.own
"""


@pytest.mark.parametrize(
    "write",
    [
        "self.cache.rows.add_(x)",
        "self.alias.rows[1:3] = x",
        "self.cache.rows.index_put_((torch.tensor([2]),), x)",
        "self.cache.rows.view(-1)[3:6].copy_(x)",
        "self.cache.rows[0].transpose(0, -1).mul_(x)",
        "self.cache.rows.index_copy_(0, torch.tensor([1]), x[None])",
        "self.cache.rows.zero_()",
        "torch.add(self.cache.rows, x, out=self.cache.rows)",
    ],
)
def test_changed_and_read_buffers_are_told_by_their_names_in_the_model(
    project: Any, write: str
) -> None:
    project.model(STATE.format(forward=f"{write}; return self.cache.count * x"))
    made = project.spec("methods: {f: {module: '.', target: plain, inputs: {x: [3]}}}").export()
    assert made.mutated == {"cache.rows"}
    assert made.read == {"cache.count"}  # and not `unused`, which nothing is computed from


def test_what_only_a_wrapper_has_is_named_after_the_method(project: Any) -> None:
    project.model(STATE.format(forward="return x"))
    made = project.spec(
        "methods: {f: {module: '.', wrapper: 'model.py:Wrapped', target: plain, inputs: {x: [3]}}}"
    ).export()
    assert (made.mutated, made.read) == ({"f:own"}, {"cache.rows"})


def test_names_in_the_model_never_swap_two_tensors(project: Any) -> None:
    # `module.weight` is what the wrapper calls the model's `weight`, and what the model calls
    # the weight of its submodule `module`.
    project.model(
        STATE.format(forward="return self.module(x) + self.tied(x) * 2 + self.weight")
    ).spec("methods: {f: {module: '.', target: plain, inputs: {x: [3]}}}")
    made, model = project.export(), project.load_model()
    x = torch.arange(3.0)
    assert torch.equal(made.program.module()(x)[0], model(x))
    assert {n for n in made.program.state_dict if "weight" in n} == {"module.weight", "weight"}


def test_export_leaves_the_models_buffers_alone(project: Any) -> None:
    from mmpack.multimethod.compile.export import export
    from mmpack.multimethod.compile.model import state_names
    from mmpack.multimethod.compile.unit import make_units

    project.model(STATE.format(forward="self.cache.rows.add_(1); return self.cache.rows + x"))
    project.spec("methods: {f: {module: '.', target: plain, inputs: {x: [3]}}}")
    model = project.load_model()
    before = dict(model.named_buffers())
    export(make_units(project.checked, model)["f"], state_names(model))
    after = dict(model.named_buffers())
    assert all(after[name] is before[name] for name in before)
    assert after["cache.rows"].count_nonzero() == 0
