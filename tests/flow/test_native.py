"""Pipelines that the native engine runs by itself: what the serial run gives on the stock engine,
to the bit, and what the reference in Python says."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpack.multimethod.errors import FlowError
from mmpack.multimethod.flow import native
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.native import NativeRun
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.flow.trace import Span

from ..compile.projects import HEAD, Project
from . import test_execute, test_state
from .test_execute import CHUNK, LONGEST
from .works import BOTH

pytestmark = pytest.mark.usefixtures("native_engine")


@pytest.fixture
def both_engines() -> str:
    """Here it is said to `load`."""
    return "native"


class Called:
    """A program's methods without the program, so that they are called from Python."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._program[name]

    def last_call(self, name: str) -> int:
        return self._program.last_call(name)


@pytest.fixture(scope="module")
def programs(
    tmp_path_factory: pytest.TempPathFactory, build_cache: Path, two_lanes: Path
) -> dict[str, Path]:
    """With caches; with caches and outputs that go where the caller says; with state."""

    def built(name: str, model: str, spec: str) -> Path:
        project = Project(tmp_path_factory.mktemp(name), build_cache)
        head = HEAD.replace("targets: {", "targets: {near: {backend: portable, lane: npu}, ")
        project.model(model).spec(spec, head=head).build()
        return project.output

    state = test_state.SPEC.replace("target: plain", "target: near", 1)
    caller = test_execute.SPEC.replace("target: plain", "target: near\n    io: caller", 1)
    return {
        "caches": two_lanes,
        "caller": built("caller", test_execute.MODEL, caller),
        "state": built("state", test_state.MODEL, state),
    }


LENGTHS = {"caches": LONGEST, "caller": LONGEST, "state": test_state.ROWS}


def rows(name: str, count: int, seed: int = 0) -> Tensor:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return x if name == "state" else x[None]


def part(name: str, x: Tensor, begin: int, end: int) -> Tensor:
    return x.narrow(0 if name == "state" else 1, begin, end - begin)


def taken(flow: Flow, monkeypatch: pytest.MonkeyPatch, *delays: Callable[[int], int]) -> list[int]:
    """Has runs delay tasks by number; gives how many tasks each native run had, once there are."""
    counts: list[int] = []
    run = NativeRun.run

    def noted(self: NativeRun, *args: Any) -> Any:
        counts.append(len(self.tasks))
        return run(self, *args, *([d(n) for n in range(counts[-1])] for d in delays))

    monkeypatch.setattr(NativeRun, "run", noted)
    return counts


@pytest.mark.parametrize("seed", range(100))
def test_random_runs_are_the_serial_one_to_the_bit(
    programs: dict[str, Path], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation in two parts of any length, with workers delayed at random."""
    rng = random.Random(seed)
    name = list(programs)[seed % 3]
    length = rng.randint(2, LENGTHS[name])
    x, middle = rows(name, length, seed), rng.randrange(1, length)
    parts = [part(name, x, 0, middle), part(name, x, middle, length)]

    stock = load(programs[name], engine="stock").flow("prefill")
    context = Context()
    expected = [stock.run(one, context=context) for one in parts]

    flow = load(programs[name], engine="native", threads=rng.choice([None, 1])).flow("prefill")
    counts = taken(flow, monkeypatch, lambda _: rng.randrange(0, 300))
    workers = {lane: rng.randint(1, 2) for lane in set(flow.lanes.values())}
    schedule: Any = rng.choice(["in-order", "out-of-order"])
    other = Context()
    got = [flow.run(one, context=other, schedule=schedule, lanes=workers) for one in parts]
    assert len(counts) == 2
    for mine, theirs in zip(got, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert other.position == context.position
    assert all(torch.equal(other.caches[cache], context.caches[cache]) for cache in context.caches)


@pytest.mark.parametrize("name", ["caches", "caller", "state"])
@pytest.mark.parametrize("give", ["all", "last", "none"])
def test_the_reference_says_the_same(programs: dict[str, Path], name: str, give: Any) -> None:
    """Outputs, caches, and which task ran on which lane."""
    program = load(programs[name], engine="native")
    mine = program.flow("prefill")
    theirs = Flow(mine.plan, Called(load(programs[name], engine="native")), mine.lanes)
    for length in (1, CHUNK - 1, CHUNK, CHUNK + 1, LENGTHS[name]):
        x = rows(name, length, length)
        found: list[tuple[Any, Context, list[Span]]] = []
        for flow in (mine, theirs):
            context, trace = Context(), list[Span]()
            made = flow.run(x, context=context, schedule="out-of-order", give=give, trace=trace)
            found.append((made, context, trace))
        (one, context, trace), (two, other, traced) = found
        assert (one is None) == (two is None) == (give == "none")
        assert one is None or all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert context.position == other.position
        assert all(torch.equal(context.caches[n], other.caches[n]) for n in other.caches)
        ran = [{(s.method, s.step, s.piece, s.lane) for s in spans} for spans in (trace, traced)]
        assert ran[0] == ran[1] and len(trace) == len(traced)


def test_outputs_are_written_where_they_are_to_be(programs: dict[str, Path]) -> None:
    """By a method with `io: caller`, straight into the cache; and what is given out is one tensor
    that nobody else has."""
    program = load(programs["caller"], engine="native")
    context = Context()
    flow = program.flow("prefill")
    flow.run(rows("caller", 2 * CHUNK), context=context, schedule="out-of-order")
    outputs = program._engine._methods["front.chunk"].addresses()[1:]  # type: ignore[attr-defined]
    second = [context.caches[name][:, CHUNK:] for name in ("keys", "values")]
    assert outputs[1:] == [rows.data_ptr() for rows in second]
    one, two = (flow.run(rows("caller", 9), schedule="out-of-order").y for _ in range(2))
    assert one.data_ptr() != two.data_ptr() and torch.equal(one, two)
    one.zero_()
    assert two.any()


def test_inputs_in_any_order_of_memory(programs: dict[str, Path]) -> None:
    flow = load(programs["caches"], engine="native").flow("prefill")
    x = rows("caches", 11)
    expected = flow.run(x)
    apart = torch.stack([x, x + 1], dim=-1)[..., 0]
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    negative = torch._neg_view(-x)  # which is no memory to be read as it is
    for same in (apart, turned, negative, x.clone().requires_grad_()):
        got = flow.run(same, schedule="out-of-order", lanes=BOTH)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_thread_that_is_ended_ends_the_flow(
    programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = load(programs["caches"], engine="native").flow("prefill")
    context = Context()
    flow.run(rows("caches", 3), context=context)
    before = {name: cache.clone() for name, cache in context.caches.items()}
    with monkeypatch.context() as patch:
        taken(flow, patch, lambda task: -1 if task == 3 else 0)
        with pytest.raises(FlowError) as raised:
            flow.run(rows("caches", 10), context=context, schedule="out-of-order", lanes=BOTH)
    assert str(raised.value).startswith(
        "flow 'prefill': method 'back.chunk' failed on piece 1 (rows 7 to 10): back.chunk: "
        "ExecuTorch failed to run it: the thread that ran it has been ended"
    )
    assert context.position == 3
    assert all(torch.equal(context.caches[name], before[name]) for name in before)
    x = rows("caches", 13, 5)
    expected = flow.run(x)
    got = flow.run(x, schedule="out-of-order", lanes=BOTH)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


LOOKUP = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 3)
    def forward(self, tokens):
        return self.table(tokens)
"""
LOOKUP_SPEC = """
dims: {chunk: 4, batch: 1}
methods:
  look:
    module: "."
    target: plain
    inputs: {tokens: {shape: [batch, chunk], dtype: int64, range: 0..9}}
    outputs: rows
flow:
  read: {cut: {tokens: chunk}, steps: [look], outputs: [rows]}
"""


def test_a_failure_is_what_the_reference_says(project: Any) -> None:
    """To the word: the task, the range of the input, and what ExecuTorch printed."""
    project.model(LOOKUP).spec(LOOKUP_SPEC).build()
    program = load(project.output, engine="native")
    mine = program.flow("read")
    theirs = Flow(mine.plan, Called(program), mine.lanes)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 70, 8, 9]])
    said = []
    for flow in (mine, theirs):
        with pytest.raises(FlowError) as raised:
            flow.run(tokens, schedule="in-order")
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert "method 'look' failed on piece 1 (rows 4 to 7)" in said[0]
    assert "input 'tokens': expected values from 0 to 9, got 70" in said[0]
    tokens[0, 6] = 7
    assert torch.equal(mine.run(tokens, schedule="in-order").rows, mine.run(tokens).rows)


def test_the_state_of_a_context_is_known_to_be_its_own(programs: dict[str, Path]) -> None:
    """As if its methods had been called one by one."""
    program = load(programs["state"], engine="native")
    flow, x = program.flow("prefill"), rows("state", 12)
    context = Context()
    flow.run(x[:6], context=context, schedule="out-of-order")
    flow.run(x[6:], context=context, schedule="out-of-order")
    flow.run(x[:1], schedule="out-of-order")
    with pytest.raises(FlowError, match="another run, or a call of a method, wrote to it"):
        flow.run(x[:1], context=context, schedule="out-of-order")


def test_a_program_that_was_reset_runs_on(programs: dict[str, Path]) -> None:
    program = load(programs["state"], engine="native")
    flow, x = program.flow("prefill"), rows("state", 12)
    run = partial(flow.run, x, schedule="out-of-order")
    first = run().y
    program.reset()
    assert torch.equal(run().y, first)
    program.unload("line.chunk")
    assert torch.equal(run().y, first)


def test_tensors_of_other_kinds_are_left_to_python(
    programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.plain([torch.ones(2), torch.ones(3).requires_grad_()])
    others: list[Any] = [torch.nn.Parameter(torch.ones(1)), torch.ones(1, device="meta"), 3]
    others += [torch._neg_view(torch.ones(1)), torch.eye(2).to_sparse()]
    assert not any(native.plain([torch.ones(2), other]) for other in others)
    flow = load(programs["caches"], engine="native").flow("prefill")
    counts = taken(flow, monkeypatch)
    x = rows("caches", 7)
    got = flow.run(torch.nn.Parameter(x), schedule="in-order").y
    assert not counts and torch.equal(got, flow.run(x, schedule="in-order").y) and counts
