"""Pipelines give what the serial run gives, to the bit, however long what takes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpack.multimethod.errors import CallError, FlowError
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.flow.trace import Span
from mmpack.multimethod.signature import Dim

from .test_execute import CHUNK, LONGEST
from .works import BOTH, decoder, lanes

PIPELINES = ("in-order", "out-of-order")


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("mmpack ")]


class Fakes:
    """Methods of `decoder` that depend on all that they are given, zeros of caches included, and
    on all calls before of those that share a buffer with them. Sums of floats: another order, other
    bits. `delay` tells how many seconds a call takes; `fails`: method -> the call that does."""

    def __init__(self, plan: Plan, delay: Callable[[], float] = lambda: 0.0) -> None:
        self.state = dict.fromkeys(plan.state, 0.37)
        self.users = plan.state
        self.delay = delay
        self.fails: dict[str, tuple[int, BaseException]] = {}
        self.calls: dict[str, int] = {}
        self.numbers = dict.fromkeys((m for users in plan.state.values() for m in users), 0)
        self.running: set[str] = set()

    def last_call(self, name: str) -> int:
        return self.numbers[name]

    def __getitem__(self, name: str) -> Callable[..., Any]:
        def method(**inputs: Tensor) -> Any:
            assert name not in self.running, f"{name} runs twice"
            self.running.add(name)
            try:
                return self.call(name, inputs)
            finally:
                self.running.remove(name)

        return method

    def call(self, name: str, inputs: dict[str, Tensor]) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        at, error = self.fails.get(name, (0, None))
        if error is not None and self.calls[name] == at:
            raise error
        seen = torch.tensor(0.1)
        for buffer, users in self.users.items():
            if name in users:
                before = self.state[buffer]
                time.sleep(self.delay())
                self.state[buffer] = before * 1.1 + float(next(iter(inputs.values())).sum())
                self.numbers[name] = max(self.numbers.values()) + 1
                seen = seen + self.state[buffer]
        for value in inputs.values():
            weights = torch.arange(1.0, value.numel() + 1).sin() + 1.3
            seen = seen + (value.flatten().float() * weights).sum() + value.numel() * 0.013
        time.sleep(self.delay())
        kind = name.partition(".")[0]
        rows = torch.arange(4.0) * 0.7 + seen.sin()
        if kind == "qkv":
            return namedtuple("qkv", "q k v")(rows, rows.cos(), rows * 1.7)
        if kind == "attention":
            return namedtuple("attention", "y")(rows.tanh() + inputs["q"])
        return namedtuple("mlp", "x")((rows * inputs["x"].cos()).sin())


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def any_plan(rng: random.Random) -> Plan:
    """Decoders whose caches are shown with zeros or not, with state or without."""
    layers = rng.randint(1, 3)
    state: dict[str, tuple[str, ...]] = {}
    if rng.random() < 0.5:
        users = [f"{kind}.{rng.randrange(layers)}" for kind in ("qkv", "mlp")]
        state = {"shared": tuple(users), "own": (f"qkv.{layers - 1}",)}
    kv = rng.choice([Dim("kv", 4, 64, 4), Dim("kv", 8, 64, 8), Dim("kv", 12, 64), Dim("kv", 1, 64)])
    return decoder(layers, kv, state, shared_attention=rng.random() < 0.5)


@pytest.mark.parametrize("seed", range(100))
def test_random_runs_are_the_serial_one_to_the_bit(seed: int) -> None:
    """A conversation in two parts of any length, with workers delayed at random: one of the lanes
    more than the other."""
    rng = random.Random(seed)
    plan = any_plan(rng)
    before, after = rows(rng.randint(1, 9), seed), rows(rng.randint(1, 30), seed + 1)
    slow = rng.choice([0, 3e-4])

    def delay() -> float:
        late = slow if "npu" in threading.current_thread().name else 0.0
        return rng.random() * 2e-4 + late

    methods, context = Fakes(plan), Context()
    serial = Flow(plan, methods, lanes(plan))
    expected = [serial.run(part, context=context).x for part in (before, after)]

    others, other = Fakes(plan, delay), Context()
    flow = Flow(plan, others, lanes(plan))
    workers = {"npu": rng.randint(1, 2), "cpu": rng.randint(1, 2)}
    schedule: Any = rng.choice(PIPELINES)
    got = [
        flow.run(part, context=other, schedule=schedule, lanes=workers).x
        for part in (before, after)
    ]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert others.state == methods.state
    assert other.position == context.position
    assert all(torch.equal(other.caches[name], context.caches[name]) for name in plan.caches)
    assert others.calls == methods.calls


@pytest.mark.parametrize("schedule", ["serial", *PIPELINES])
@pytest.mark.parametrize("seed", range(10))
def test_outputs_that_nobody_wants_are_not_made(schedule: Any, seed: int) -> None:
    """And what goes on from there is what it would be."""
    plan = any_plan(random.Random(seed))
    fed, after = rows(3 * 4 + 2, seed), rows(5, seed + 1)
    methods, context = Fakes(plan), Context()
    whole = Flow(plan, methods, lanes(plan)).run(fed, context=context).x
    end = Flow(plan, methods, lanes(plan)).run(after, context=context).x
    last = max(int(s.method[4:]) for s in plan.steps if s.method.startswith("mlp"))
    for give, made in (("last", whole[-2:]), ("none", None)):
        others, other, trace = Fakes(plan), Context(), list[Span]()
        flow = Flow(plan, others, lanes(plan))
        options: Any = {"schedule": schedule, "give": give}
        got = flow.run(fed, context=other, trace=trace, **options)
        assert got is made is None or torch.equal(got.x, made)
        reached = {user for users in plan.state.values() for user in users}
        ends = f"mlp.{last}"
        calls = 4 if ends in reached else (give == "last")
        assert others.calls.get(ends, 0) == calls and others.calls[f"qkv.{last}"] == 4
        assert sum(span.method == ends for span in trace) == calls
        assert torch.equal(flow.run(after, context=other, schedule=schedule).x, end)
        assert others.state == methods.state


def test_a_reader_that_is_shown_zeros_would_tell() -> None:
    """That the runs above would notice an edge too few: these calls in another order differ."""
    plan = decoder(1, Dim("kv", 8, 64, 8))
    flow = Flow(plan, Fakes(plan), lanes(plan))
    expected = flow.run(rows(8)).x
    caches = Context()
    flow.run(rows(8), context=caches)
    read = Fakes(plan)["attention.0"]
    q, k, v = torch.ones(4), caches.caches["k.0"][:8], caches.caches["v.0"][:8]
    early = torch.cat([k[:4], torch.zeros(4)]), torch.cat([v[:4], torch.zeros(4)])
    one = read(q=q, k=early[0], v=early[1], positions=torch.arange(4)).y
    two = read(q=q, k=k, v=v, positions=torch.arange(4)).y
    assert not torch.equal(one, two)
    assert torch.equal(flow.run(rows(8), schedule="out-of-order").x, expected)


@pytest.mark.parametrize("schedule", PIPELINES)
@pytest.mark.parametrize("error", [CallError("input 'x' must be\nright"), ValueError("odd")])
def test_a_failure_names_its_task_and_leaves_everything_usable(
    schedule: Any, error: Exception
) -> None:
    plan = decoder(2, state={"kept": ("mlp.1",)})
    methods, context = Fakes(plan), Context()
    flow = Flow(plan, methods, lanes(plan))
    flow.run(rows(3), context=context)
    caches = {name: cache.clone() for name, cache in context.caches.items()}
    methods.fails["attention.1"] = 3, error
    with pytest.raises(FlowError) as raised:
        flow.run(rows(10, 1), context=context, schedule=schedule)
    said = str(error) if isinstance(error, CallError) else "ValueError('odd')"
    assert str(raised.value) == (
        f"flow 'prefill': method 'attention.1' failed on piece 1 (rows 7 to 10): {said}"
    )
    assert raised.value.__cause__ is error
    assert context.position == 3
    assert all(torch.equal(context.caches[name], caches[name]) for name in caches)
    methods.fails.clear()
    flow.run(rows(2), context=context)  # its state is its own, whether `mlp.1` ran or not
    assert context.position == 5
    other, again = Context(), Flow(plan, Fakes(plan), lanes(plan))
    expected = again.run(rows(10, 2), context=other).x
    methods.state = dict.fromkeys(plan.state, 0.37)
    assert torch.equal(flow.run(rows(10, 2), schedule=schedule).x, expected)


@pytest.mark.parametrize("schedule", PIPELINES)
def test_an_interrupt_remains_one(schedule: Any) -> None:
    plan = decoder(2)
    methods, context = Fakes(plan), Context()
    flow = Flow(plan, methods, lanes(plan))
    methods.fails["qkv.1"] = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        flow.run(rows(12), context=context, schedule=schedule)
    assert context.position == 0
    assert not any(cache.count_nonzero() for cache in context.caches.values())


def test_a_signal_ends_a_run_once_its_calls_are_over() -> None:
    plan = decoder(2)
    interrupts = iter([0, 0, 0, 1])

    def delay() -> float:
        if next(interrupts, 0):
            os.kill(os.getpid(), signal.SIGINT)
        return 0.01

    methods, context = Fakes(plan, delay), Context()
    flow = Flow(plan, methods, lanes(plan))
    with pytest.raises(KeyboardInterrupt):
        flow.run(rows(40), context=context, schedule="out-of-order")
    assert not methods.running and sum(methods.calls.values()) < 60
    assert context.position == 0
    assert not any(cache.count_nonzero() for cache in context.caches.values())
    expected = Flow(plan, Fakes(plan), lanes(plan)).run(rows(9)).x
    assert torch.equal(flow.run(rows(9), context=context, schedule="out-of-order").x, expected)


def test_a_trace_tells_what_ran_where() -> None:
    plan = decoder(2)
    flow = Flow(plan, Fakes(plan, lambda: 1e-4), lanes(plan))
    for schedule in ("serial", *PIPELINES):
        trace: list[Span] = []
        flow.run(rows(9), schedule=schedule, trace=trace)  # type: ignore[arg-type]
        found = {(span.step, span.piece.number): span for span in trace}
        assert len(trace) == len(found) == 6 * 3
        for (step, _), span in found.items():
            assert span.method == plan.steps[step].method
            assert (span.lane, span.worker) == (lanes(plan)[span.method], 0)
            assert 0 < span.seconds < 10
        assert [(p.first, p.rows) for p in (found[0, n].piece for n in range(3))] == [
            (0, 4), (4, 4), (8, 1),
        ]  # fmt: skip
    assert trace[-1].end <= time.perf_counter()


def test_times_are_those_of_the_longest_run_unless_they_are_set() -> None:
    plan = decoder(1)
    flow = Flow(plan, Fakes(plan, lambda: 1e-4), lanes(plan))
    flow.run(rows(9))
    assert flow.times == {}
    for length, pieces in ((3, 1), (9, 3), (4, 3)):
        flow.run(rows(length), schedule="out-of-order")
        assert set(flow.times) == {"qkv.0", "attention.0", "mlp.0"}
        assert {len(seconds) for seconds in flow.times.values()} == {pieces}  # type: ignore[arg-type]
    flow.times = {"mlp.0": 2.0}
    flow.run(rows(30), schedule="out-of-order")
    assert flow.times == {"mlp.0": 2.0}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "outoforder"}, "no schedule 'outoforder'; did you mean 'out-of-order'?"),
        ({"lanes": {"gpu": 1}}, "no method is on lane 'gpu'"),
        ({"lanes": {"cpu": 0}, "schedule": "in-order"}, "lane 'cpu' must have at least 1 worker"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(options: Mapping[str, Any], says: str) -> None:
    plan, context = decoder(1), Context()
    with pytest.raises(FlowError) as raised:
        Flow(plan, Fakes(plan), lanes(plan)).run(rows(4), context=context, **options)
    assert str(raised.value).startswith("flow 'prefill': ") and says in str(raised.value)
    assert context == Context()


def test_modes_of_the_caller_hold_in_all_threads() -> None:
    plan = decoder(1)
    flow = Flow(plan, Fakes(plan), lanes(plan))
    with torch.inference_mode():
        inside = flow.run(rows(9), schedule="out-of-order").x
    assert inside.is_inference()
    x = rows(9).requires_grad_()
    assert flow.run(x, schedule="out-of-order").x.requires_grad
    with torch.no_grad():
        assert not flow.run(x, schedule="out-of-order").x.requires_grad


class TestOnTheStockEngine:
    @pytest.fixture(scope="class")
    def program(self, two_lanes: Path) -> Program:
        return load(two_lanes)

    @pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 2, LONGEST])
    def test_pieces_of_any_length(self, program: Program, length: int) -> None:
        x = torch.randn(1, length, 3, generator=torch.Generator().manual_seed(length))
        flow = program.flow("prefill")
        assert flow.lanes["front.chunk"] == "npu" and flow.lanes["back.chunk"] == "cpu"
        assert program.flow("decode").lanes["front.one"] == "cpu"
        expected, trace = flow.run(x), []
        for schedule in PIPELINES:
            context = Context()
            got = flow.run(x, context=context, schedule=schedule, lanes=BOTH, trace=trace)  # type: ignore[arg-type]
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            assert context.position == length
        assert {span.lane for span in trace} == {"npu", "cpu"}

    def test_a_context_goes_on_in_another_schedule(self, program: Program) -> None:
        x = torch.randn(1, LONGEST, 3)
        expected = program.flow("prefill").run(x)
        context, got = Context(), []
        for begin, end, name, schedule in (
            (0, 9, "prefill", "out-of-order"),
            (9, 10, "decode", "serial"),
            (10, 23, "prefill", "in-order"),
            (23, 24, "decode", "out-of-order"),
        ):
            part = x[:, begin:end]
            got.append(program.flow(name).run(part, context=context, schedule=schedule))  # type: ignore[arg-type]
        torch.testing.assert_close(torch.cat([one.y for one in got], 1), expected.y)

    def test_the_adder(self, example: Callable[[str], Path]) -> None:
        program = load(example("adder"))
        serial = program.flow("prefill")
        static = {
            step.method: "cpu" if step.method.startswith("attention") else "npu"
            for step in serial.plan.steps
        }
        pipelined = Flow(serial.plan, program, static)
        for seed, length in enumerate((1, 31, 32, 33, 100, 255)):
            tokens = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(seed))
            expected = serial.run(tokens).logits
            for schedule in PIPELINES:
                got = pipelined.run(tokens, schedule=schedule).logits  # type: ignore[arg-type]
                assert torch.equal(got, expected)
