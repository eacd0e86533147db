"""What calibration records, held against hooks and loops written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod.calibrate import HELD_BACK, record_examples
from mmpack.multimethod.compile.calls import Examples, read_calls
from mmpack.multimethod.compile.export import export
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.unit import make_units
from mmpack.multimethod.errors import ModelError, SpecError
from mmpack.multimethod.flow.plan import expanded_flows, make_plan
from mmpack.multimethod.report.tables import build_summary

from .compile.projects import MAKE

MODEL = """
class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, x, *, by):
        return self.linear(x) * by

class Front(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.first = model.first
    def forward(self, x):
        return self.first(x), x + 1

class Back(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.second = model.second
    def forward(self, x, past):
        return self.second(x) + past.mean(1, keepdim=True)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = Inner()
        self.unused = nn.Linear(4, 4)
    def forward(self, x):
        return self.inner(self.first(x), by=torch.full((1,), 2.0))

def examples():
    for i in range(6):
        yield {"x": torch.full((1, 2, 4), float(i))}

def positional():
    for i in range(3):
        yield torch.full((1, 2, 4), float(i))

def pairs():
    yield torch.ones(1, 2, 4), torch.ones(1)
    yield {"by": torch.zeros(1), "x": torch.zeros(1, 2, 4)}

def wide(): yield torch.ones(1, 3, 4)
def none(): return []
def other(): yield {"y": torch.ones(1, 2, 4)}
def fourth():
    for name in ("y", "y", "y", "x"):
        yield {name: torch.ones(1, 2, 4)}
def broken():
    yield {"x": torch.ones(1, 2, 4)}
    raise OSError("no more")

def long():
    for i in range(4):
        yield {"x": torch.arange(20.0).reshape(1, 5, 4) + i}
"""
HEAD = """\
mmpack: 1
model: {factory: model.py:make}
targets: {q: {backend: xnnpack, precision: 8a8w}, plain: {backend: portable}}
dims: {chunk: 2, past: {min: 2, max: 8, step: 2}}
"""
INNER = "inner: {module: inner, target: q, inputs: {x: [1, chunk, 4], by: [1]}}"
FLOW = """
calibration: model.py:long
methods:
  front:
    {module: ".", wrapper: model.py:Front, target: plain, inputs: {x: [1, chunk, 4]},
    outputs: [y, z]}
  back:
    {module: ".", wrapper: model.py:Back, target: q, outputs: w,
    inputs: {x: [1, chunk, 4], past: [1, past, 4]}}
flow:
  whole:
    cut: {x: chunk}
    reference: none
    steps:
      - {run: front, append: {z: rows}}
      - {run: back, with: {x: y, past: rows}}
    outputs: [w]
"""

READS_A_FILE = """
def examples():
    by = float(open(__file__.replace("model.py", "by.txt")).read())
    for i in range(6):
        yield {"x": torch.full((1, 2, 4), i * by)}
"""
COUNTING = """
class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 4))
    def CALL(self, x):
        self.total.add_(x)
        return self.total * 1.0

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.counter = Counter()
    def forward(self, x):
        return self.counter.CALL(x)

def numbers():
    for n in (1.0, 2.0, 4.0):
        yield torch.full((1, 4), n)
"""


def recorded(
    project: Any, tmp_path: Path, state: dict[str, tuple[str, ...]] | None = None
) -> tuple[Examples, Any]:
    spec_file, model = project.checked, project.load_model()
    units = make_units(spec_file, model)
    names = state_names(model)
    signatures = {name: export(unit, names).signature for name, unit in units.items()}
    plans = {n: make_plan(n, f, signatures) for n, f in expanded_flows(spec_file).items()}
    tape = tmp_path / "tape"
    return record_examples(spec_file, model, units, signatures, plans, tape, state), model


def calls(examples: Examples, name: str, held_back: bool = False) -> list[list[torch.Tensor]]:
    chosen = examples.held_back if held_back else examples.calls
    return list(read_calls(examples.tape, chosen[name]))


def test_a_submodule_is_recorded_with_what_it_is_called_with(project: Any, tmp_path: Path) -> None:
    project.model(MODEL).spec(f"calibration: model.py:examples\nmethods:\n  {INNER}\n", head=HEAD)
    examples, model = recorded(project, tmp_path)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    hook = model.inner.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args[0], kwargs["by"], out)), with_kwargs=True
    )
    for i in range(6):
        model(torch.full((1, 2, 4), float(i)))
    hook.remove()
    kept = [call for i, call in enumerate(seen) if i % HELD_BACK != HELD_BACK - 1]
    assert len(kept) == 5
    for call, (x, by, _) in zip(calls(examples, "inner"), kept, strict=True):
        assert torch.equal(call[0], x) and torch.equal(call[1], by)
    ((x, by),) = calls(examples, "inner", held_back=True)
    assert torch.equal(x, seen[3][0])
    ranges = examples.ranges["inner"]
    for end, values in (
        (("input", "x"), torch.stack([x for x, _, _ in kept])),
        (("output", "out"), torch.stack([out for _, _, out in kept])),
    ):
        assert ranges[end] == pytest.approx([float(values.min()), float(values.max())])
    assert ranges["input", "by"] == (2.0, 2.0)


@pytest.mark.parametrize(
    ("call", "caller"), [("forward", "self.counter"), ("count", "self.counter.count")]
)
def test_a_submodule_with_state_is_recorded_as_the_model_runs_it(
    project: Any, tmp_path: Path, call: str, caller: str
) -> None:
    """Once a sample, from the state that the samples before it left."""
    model = COUNTING.replace("def CALL", f"def {call}").replace("self.counter.CALL", caller)
    project.model(model).spec(
        "calibration: model.py:numbers\nmethods:\n"
        f"  f: {{module: counter, call: {call}, target: q, inputs: {{x: [1, 4]}}}}\n",
        head=HEAD,
    )
    examples, model = recorded(project, tmp_path, {"counter.total": ("f",)})
    assert not model.counter.total.any()  # as it was
    totals = [float(model(torch.full((1, 4), n)).mean()) for n in (1.0, 2.0, 4.0)]
    assert totals == [1, 3, 7]
    assert examples.ranges["f"] == {
        ("input", "x"): (1.0, 4.0),
        ("output", "out"): (1.0, 7.0),
        ("state", "counter.total"): (0.0, 7.0),
    }
    assert [x.mean().item() for (x,) in calls(examples, "f")] == [1, 2, 4]
    assert examples.buffers["f"] == ("counter.total",)
    before = read_calls(examples.tape, examples.before["f"])
    assert [total.mean().item() for (total,) in before] == [0, 1, 3]


def test_inputs_of_the_model_may_be_given_by_position(project: Any, tmp_path: Path) -> None:
    project.model(MODEL).spec(f"calibration: model.py:positional\nmethods:\n  {INNER}\n", head=HEAD)
    assert len(calls(recorded(project, tmp_path)[0], "inner")) == 3


def test_a_method_may_have_examples_of_its_own(project: Any, tmp_path: Path) -> None:
    inner = INNER.replace("target: q,", "target: q, calibration: model.py:pairs,")
    project.model(MODEL).spec(f"methods:\n  {inner}\n", head=HEAD)
    found = [[t.mean().item() for t in c] for c in calls(recorded(project, tmp_path)[0], "inner")]
    assert found == [[1, 1], [0, 0]]


def test_a_step_of_a_flow_is_recorded_with_its_pieces_and_caches(
    project: Any, tmp_path: Path
) -> None:
    project.model(MODEL).spec(FLOW, head=HEAD)
    examples, model = recorded(project, tmp_path)
    expected = []
    for i in range(3):  # the fourth sample is held back
        x = torch.arange(20.0).reshape(1, 5, 4) + i
        padded = torch.cat([x, torch.zeros(1, 1, 4)], 1)
        for piece in range(3):
            fed = min(5, 2 * piece + 2)
            rows = torch.cat([x[:, :fed] + 1, torch.zeros(1, 2 * piece + 2 - fed, 4)], 1)
            expected.append((model.first(padded[:, 2 * piece : 2 * piece + 2]), rows))
    got = calls(examples, "back")
    assert len(got) == 9
    for call, (y, rows) in zip(got, expected, strict=True):
        assert torch.allclose(call[0], y) and torch.equal(call[1], rows)
    assert len(calls(examples, "back", held_back=True)) == 3
    assert "front" not in examples.calls  # it is not quantized
    (flow_input,) = read_calls(examples.tape, examples.flows["whole"])
    assert torch.equal(flow_input[0], torch.arange(20.0).reshape(1, 5, 4) + 3)


def test_a_method_for_the_last_row_is_recorded_with_it(project: Any, tmp_path: Path) -> None:
    """And what the flow runs besides is recorded once."""
    head = (
        "  head.{n}:\n    {each: {n: [chunk, one]}, module: second, target: q, outputs: u,\n"
        '    inputs: {input: [1, "{n}", 4]}}\nflow:'
    )
    step = "- {run: head.chunk, with: {input: w}, last: head.one}\n    outputs: [u]"
    spec = FLOW.replace("flow:", head).replace("    outputs: [w]", f"      {step}")
    project.model(MODEL).spec(spec, head=HEAD.replace("chunk: 2", "chunk: 2, one: 1"))
    examples, model = recorded(project, tmp_path)
    assert [len(calls(examples, name)) for name in ("back", "head.chunk", "head.one")] == [9, 9, 3]
    assert len(calls(examples, "back", held_back=True)) == 3
    for i, (row,) in enumerate(calls(examples, "head.one")):
        x = torch.arange(20.0).reshape(1, 5, 4) + i
        rows = torch.cat([x + 1, torch.zeros(1, 1, 4)], 1)
        expected = model.second(model.first(x)) + rows.mean(1, keepdim=True)
        assert torch.allclose(row, expected[:, -1:])
    assert len(calls(examples, "head.one", held_back=True)) == 1
    built = project.build()
    assert [flow.right for flow in built.flows] == [True]


def test_what_is_calibrated_is_compiled_anew_for_other_examples_only(
    project: Any, tmp_path: Path
) -> None:
    """The callable may read anything, here a file: only what it yields tells."""
    project.file("by.txt", "1")
    project.model(MODEL, READS_A_FILE + MAKE)
    project.spec(f"calibration: model.py:examples\nmethods:\n  {INNER}\n", head=HEAD)
    assert project.build(cache=tmp_path).compiled == 1
    again = project.build(cache=tmp_path)
    assert again.compiled == 0 and "nothing was compiled" in build_summary(again)
    project.file("by.txt", "2")
    assert project.build(cache=tmp_path).compiled == 1


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ("none", "model.py:none yields nothing to calibrate with"),
        ("broken", "model.py:broken failed: OSError: no more"),
        ("wide", "sample 0: inner: input 'x': axis 1 (dim 'chunk'): expected 2, got 3"),
        ("other", "sample 0 failed: TypeError"),
    ],
)
def test_examples_that_are_of_no_use(project: Any, examples: str, says: str) -> None:
    spec = f"calibration: model.py:{examples}\nmethods:\n  {INNER}\n"
    project.model(MODEL).spec(spec, head=HEAD)
    with pytest.raises(ModelError) as raised:
        project.build()
    assert says in str(raised.value)
    assert f"{project.path}:5:14: calibration:" in str(raised.value)


def test_examples_that_no_flow_takes(project: Any) -> None:
    project.model(MODEL).spec(FLOW.replace("model.py:long", "model.py:other"), head=HEAD)
    with pytest.raises(ModelError, match="no sample is an input of flow 'whole', which takes 'x'"):
        project.build()


def test_examples_that_are_all_held_back(project: Any) -> None:
    spec = FLOW.replace("model.py:long", "model.py:fourth").replace("target: plain", "target: q")
    project.model(MODEL).spec(spec, head=HEAD)
    with pytest.raises(ModelError, match=r"are held back .* reach method 'front'"):
        project.build()


def test_a_submodule_that_no_example_reaches(project: Any) -> None:
    project.model(MODEL).spec(
        "calibration: model.py:examples\nmethods:\n"
        "  f: {module: unused, target: q, inputs: {input: [1, 4]}}\n",
        head=HEAD,
    )
    with pytest.raises(ModelError, match="on the samples never called 'unused'"):
        project.build()


def test_a_precision_without_examples_is_told_before_anything_is_run(project: Any) -> None:
    project.model("raise SystemExit('run')").spec(f"methods:\n  {INNER}\n", head=HEAD)
    with pytest.raises(SpecError, match=r"spec.yaml:3:44: targets.q.precision: 8a8w takes"):
        project.build()
