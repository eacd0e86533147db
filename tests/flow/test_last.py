"""The last row of a run alone: what eager PyTorch has there, by methods that read one row."""

from __future__ import annotations

import importlib
import math
import random
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from mmpack.multimethod.errors import CallError, FlowError, VerifyError
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.native import NativeRun
from mmpack.multimethod.flow.plan import Plan, Step
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.flow.trace import Span
from mmpack.multimethod.link import link
from mmpack.multimethod.report.inspection import inspect
from mmpack.multimethod.verify.checked import Checked

from ..compile.projects import HEAD, Project
from . import test_execute
from .test_execute import CHUNK, LONGEST, rows
from .test_parallel import Fakes, any_plan
from .test_parallel import rows as fake_rows
from .works import BOTH, lanes

verify_program: Any = importlib.import_module("mmpack.multimethod.verify.program")
SCHEDULES: tuple[Any, ...] = ("serial", "in-order", "out-of-order")

MODEL = test_execute.MODEL.partition("class Model")[0] + (
    """
class Mix(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.mix = model.mix
    def forward(self, mixed, x):
        return self.mix(mixed).tanh() + x

class Head(nn.Module):
    def __init__(self, model, more=0.0):
        super().__init__()
        self.head, self.more = model.head, more
    def forward(self, x, y):
        return self.head(x) + self.more, x.sum(-1) - y.sum(-1)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.qk, self.v = nn.Linear(3, 5), nn.Linear(3, 2)
        self.mix, self.head = nn.Linear(2, 3), nn.Linear(3, 40)
    def forward(self, x):
        y, where = Back(self)(*Front(self)(x), torch.arange(x.shape[1]))
        mixed = Mix(self)(y, x)
        return *Head(self)(mixed, y), where, mixed
"""
)
SPEC = test_execute.SPEC.partition("flow:")[0] + (
    """\
  mix.{n}:
    each: {n: [chunk, one]}
    module: "."
    wrapper: model.py:Mix
    target: cpu
    inputs: {mixed: [batch, "{n}", 2], x: [batch, "{n}", 3]}
    outputs: x
  head.{n}:
    each: {n: [chunk, one]}
    module: "."
    wrapper: model.py:Head
    target: cpu
    inputs: {x: [batch, "{n}", 3], y: [batch, "{n}", 2]}
    outputs: [logits, sums]
flow:
  "{name}":
    each: {name: [prefill, decode], n: {cycle: [chunk, one]}}
    cut: {x: "{n}"}
    steps:
      - {run: "front.{n}", append: {k: keys, v: values}}
      - {run: "back.{n}", with: {k: keys, v: values}}
      - {run: "mix.{n}", with: {mixed: y}, last: mix.one}
      - {run: "head.{n}", last: head.one}
    outputs: [logits, sums, where, x]
"""
)
"""The steps with `last` read what a step gives, a cut input, and each other; one of them gives
what is called as that input is. Of the outputs, `where` is no such step's."""

Eager = Callable[[Tensor], tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Project:
    project = Project(tmp_path_factory.mktemp("last"), build_cache)
    head = HEAD.replace("targets: {", "targets: {near: {backend: portable, lane: npu}, ")
    project.model(MODEL).spec(SPEC.replace("target: plain", "target: near", 1), head=head).build()
    return project


@pytest.fixture(scope="module")
def eager(project: Project) -> Eager:
    """The last row of everything, of a model that reads all at once."""
    model = project.load_model()

    @torch.no_grad()
    def last(x: Tensor) -> tuple[Tensor, ...]:
        logits, sums, where, mixed = model(x)
        return logits[:, -1:], sums[:, -1:], where[-1:], mixed[:, -1:]

    return last


@pytest.fixture
def program(project: Project, engine: str) -> Program:
    """On the engine of this run of the test."""
    return load(project.output)


def equal(got: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, LONGEST])
def test_it_is_the_last_row(program: Program, eager: Eager, length: int) -> None:
    flow, x = program.flow("prefill"), rows(length, length)
    serial = flow.run(x, give="row")
    assert serial._fields == ("logits", "sums", "where", "x")
    torch.testing.assert_close(tuple(serial), eager(x))
    last = flow.run(x, give="last")
    joined = zip(last, flow.plan.joins.values(), strict=True)
    theirs = tuple(whole.narrow(axis, -1, 1) for whole, axis in joined)
    torch.testing.assert_close(tuple(serial), theirs)
    for schedule in SCHEDULES:
        trace: list[Span] = []
        got = flow.run(x, give="row", schedule=schedule, lanes=BOTH, trace=trace)
        assert equal(got, serial)
        ran = [span.method for span in trace]
        pieces = -(-length // CHUNK)
        assert (ran.count("front.chunk"), ran[-2:]) == (pieces, ["mix.one", "head.one"])
        assert ran.count("back.chunk") == 1 and len(ran) == pieces + 3
        assert {(s.piece.first, s.piece.rows, s.lane) for s in trace[-2:]} == {
            (length - 1, 1, "cpu")
        }


def test_both_engines_have_the_same_bits(project: Project) -> None:
    x = rows(11)
    one, other = (load(project.output, engine=e).flow("prefill") for e in ("stock", "native"))  # type: ignore[arg-type]
    expected = one.run(x, give="row")
    assert all(equal(other.run(x, give="row", schedule=s), expected) for s in SCHEDULES)


def test_the_native_engine_runs_the_other_steps_by_itself(
    program: Program, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[int] = []
    run = NativeRun.run
    monkeypatch.setattr(NativeRun, "run", lambda s, *a: (tasks.append(len(s.tasks)), run(s, *a))[1])
    flow = program.flow("prefill")
    for _ in range(2):
        flow.run(rows(9), give="row", schedule="out-of-order")
    assert tasks == ([2 * 3] * 2 if engine == "native" else [])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_context_goes_on(program: Program, eager: Eager, schedule: Any) -> None:
    x, context, other = rows(LONGEST), Context(), Context()
    begin = 0
    for end in (9, 10, 14, 18, 23):
        name = "decode" if end == 10 else "prefill"
        part = x[:, begin:end]
        got = program.flow(name).run(part, context=context, schedule=schedule, give="row")
        torch.testing.assert_close(tuple(got), eager(x[:, :end]))
        program.flow(name).run(part, context=other)
        assert context.position == other.position == end
        assert equal(context.caches.values(), other.caches.values())
        begin = end
    with pytest.raises(FlowError, match="do not fit into cache"):
        program.flow("prefill").run(x[:, :2], context=context, schedule=schedule, give="row")
    assert context.position == 23


def test_a_piece_of_one_row_is_its_own_last(program: Program) -> None:
    flow = program.flow("decode")
    assert all(step.last is None for step in flow.plan.steps)
    assert equal(flow.run(rows(1), give="row"), flow.run(rows(1)))


def test_without_such_methods_it_is_cut_from_the_last_piece(two_lanes: Path, engine: str) -> None:
    flow = load(two_lanes).flow("prefill")
    for schedule in SCHEDULES:
        got, last = (flow.run(rows(7), schedule=schedule, give=g) for g in ("row", "last"))  # type: ignore[arg-type]
        assert torch.equal(got.y, last.y[:, -1:]) and torch.equal(got.where, last.where[-1:])
        assert got.y.untyped_storage().nbytes() == 4 * got.y.numel()


def test_it_survives_linking(project: Project, tmp_path: Path, engine: str) -> None:
    rename = {"head.one": "last_head", "mix.one": "mix.chunk", "mix.chunk": "mix.one"}
    link([project.output], tmp_path / "x.pte", rename=rename)
    plain: Any = inspect(tmp_path / "x.pte").flow["prefill"]
    assert [step.get("last") for step in plain["steps"]] == [None, None, "mix.chunk", "last_head"]
    expected = load(project.output).flow("prefill").run(rows(6), give="row")
    assert equal(load(tmp_path / "x.pte").flow("prefill").run(rows(6), give="row"), expected)


def test_manifests_without_the_word_are_read(project: Project, tmp_path: Path) -> None:
    manifest = load(project.output).manifest
    assert manifest is not None
    steps = manifest.flow["prefill"]["steps"]
    older = [{key: value for key, value in step.items() if key != "last"} for step in steps]
    flow = {"prefill": {**manifest.flow["prefill"], "steps": older}}
    link([project.output], tmp_path / "x.pte", manifest=evolve(manifest, flow=flow))
    run = load(tmp_path / "x.pte").flow("prefill").run
    assert torch.equal(run(rows(6), give="row").logits, run(rows(6), give="last").logits[:, -1:])


def test_a_build_compares_it_with_the_model(tmp_path: Path, build_cache: Path) -> None:
    """Where all methods are right, each for itself."""
    before, _, after = SPEC.partition("  head.{n}:\n    each: {n: [chunk, one]")
    each = '  head.{n}:\n    args: {more: "{m}"}\n    each: {n: [chunk, one], m: {cycle: [0, 1]}'
    flow = after.replace("each: {name: [prefill, decode], n", "each: {name: [prefill], n")
    project = Project(tmp_path, build_cache).model(MODEL).spec(before + each + flow)
    with pytest.raises(VerifyError) as raised:
        project.build()
    (line,) = str(raised.value).splitlines()
    assert "flow prefill: the last row of output 'logits' at 10 rows is off by" in line


class Heads(Fakes):
    """With a step that reads each row alone: with exact results, whatever method computes it."""

    def call(self, name: str, inputs: dict[str, Tensor]) -> Any:
        made = super().call(name, inputs)
        if name.startswith("head"):
            assert len(inputs["x"]) == (1 if name == "head.one" else 4)
            made = namedtuple("head", "y")(inputs["x"] * 2 + 1)
        return made


def with_head(plan: Plan) -> Plan:
    head = Step("head", (("x", "x"),), (("y", "y"),), (), "head.one")
    return evolve(plan, steps=(*plan.steps, head), joins={"y": 0, "x": 0}, rows={"x": 0})


@pytest.mark.parametrize("seed", range(30))
def test_random_decoders(seed: int) -> None:
    """In two parts of any length, with state or without: contexts are as they are otherwise, and
    nothing else is called."""
    rng = random.Random(seed)
    plan = with_head(any_plan(rng))
    parts = fake_rows(rng.randint(1, 9), seed), fake_rows(rng.randint(1, 30), seed + 1)
    methods, context = Heads(plan), Context()
    whole = Flow(plan, methods, lanes(plan))
    last = [whole.run(part, context=context, give="last") for part in parts]
    others, other = Heads(plan, lambda: rng.random() * 1e-4), Context()
    flow = Flow(plan, others, lanes(plan))
    workers = {"npu": rng.randint(1, 2), "cpu": rng.randint(1, 2)}
    how: Any = {"schedule": rng.choice(SCHEDULES), "lanes": workers, "give": "row"}
    got = [flow.run(part, context=other, **how) for part in parts]
    for mine, theirs in zip(got, last, strict=True):
        assert torch.equal(mine.y, theirs.y[-1:]) and torch.equal(mine.x, theirs.x[-1:])
    assert other.position == context.position and other.state == context.state
    assert equal((other.caches[n] for n in plan.caches), (context.caches[n] for n in plan.caches))
    assert others.state == methods.state
    assert others.calls.pop("head.one") == methods.calls.pop("head") == 2
    assert others.calls == methods.calls


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("error", [CallError("input 'x' must be right"), ValueError("odd")])
def test_a_failure_names_the_method_and_leaves_everything_usable(
    schedule: Any, error: Exception
) -> None:
    plan = with_head(any_plan(random.Random(1)))
    methods, context = Heads(plan), Context()
    flow = Flow(plan, methods, lanes(plan))
    flow.run(fake_rows(3), context=context)
    caches = {name: cache.clone() for name, cache in context.caches.items()}
    methods.fails["head.one"] = 1, error
    with pytest.raises(type(error) if schedule == "serial" else FlowError) as raised:
        flow.run(fake_rows(10, 1), context=context, schedule=schedule, give="row")
    if schedule == "serial":
        assert raised.value is error
    else:
        said = str(error) if isinstance(error, CallError) else "ValueError('odd')"
        assert str(raised.value) == (
            f"flow 'prefill': method 'head.one' failed on piece 2 (rows 12 to 12): {said}"
        )
        assert raised.value.__cause__ is error
    assert context.position == 3 and equal(context.caches.values(), caches.values())
    methods.fails.clear()
    flow.run(fake_rows(2), context=context, schedule=schedule, give="row")
    assert context.position == 5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_interrupt_remains_one(schedule: Any) -> None:
    plan = with_head(any_plan(random.Random(2)))
    methods, context = Heads(plan), Context()
    methods.fails["head.one"] = 1, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Flow(plan, methods).run(fake_rows(9), context=context, schedule=schedule, give="row")
    assert context.position == 0
    assert not any(cache.count_nonzero() for cache in context.caches.values())


def test_such_runs_are_planned_by_times_of_their_own_or_those_that_are_set() -> None:
    plan = with_head(any_plan(random.Random(3)))
    flow = Flow(plan, Heads(plan), lanes(plan))
    flow.run(fake_rows(9), schedule="out-of-order", give="row")
    assert set(flow.times) == {step.method for step in plan.steps} - {"head"}
    flow.run(fake_rows(9), schedule="out-of-order")
    assert set(flow.times) == {step.method for step in plan.steps}
    flow.times = {"head": 2.0}
    flow.run(fake_rows(30), schedule="out-of-order", give="row")
    assert flow.times == {"head": 2.0}


def test_a_flow_of_such_steps_alone() -> None:
    plan = evolve(with_head(any_plan(random.Random(4))), caches={}, state={}, joins={"y": 0})
    plan = evolve(plan, steps=plan.steps[-1:])
    for schedule in SCHEDULES:
        methods, context = Heads(plan), Context()
        x = fake_rows(9)
        got = Flow(plan, methods).run(x, context=context, schedule=schedule, give="row")
        assert torch.equal(got.y, x[-1:] * 2 + 1) and methods.calls == {"head.one": 1}
        assert context.position == 9


@pytest.mark.parametrize(("flow", "methods"), [("prefill", 4), ("decode", 4)])
def test_methods_for_the_last_row_do_not_lower_what_a_quantized_flow_is_held_to(
    project: Project, monkeypatch: pytest.MonkeyPatch, flow: str, methods: int
) -> None:
    """Noise adds up over the steps of a run; a method for the last row runs in place of one."""

    def checked(program: Program, units: Mapping[str, Any], *_: Any) -> dict[str, Checked]:
        return {name: Checked(name, 0.0, 1.0, "", sqnr=30.0, least_sqnr=20.0) for name in units}

    def held(flow: Flow, *args: Any) -> Checked:
        found[flow.plan.name] = args[-2]
        return Checked(flow.plan.name, 0.0, 1.0, "")

    found: dict[str, float] = {}
    monkeypatch.setattr(verify_program, "verify_methods", checked)
    monkeypatch.setattr(verify_program, "verify_flow", held)
    verify_program.verify(project.output, project.path)
    assert found[flow] == pytest.approx(20.0 - 10 * math.log10(methods))
