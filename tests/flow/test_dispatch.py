"""Threads that run tasks: in a right order, at once where they can, and gone when it is over."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpack.multimethod.flow import dispatch as dispatching
from mmpack.multimethod.flow.dispatch import Order, TaskFailed, dispatch
from mmpack.multimethod.flow.orders import make_order
from mmpack.multimethod.flow.policies import InOrder, out_of_order
from mmpack.multimethod.flow.simulate import simulate
from mmpack.multimethod.flow.work import Work

from .works import BOTH, decoder_work, works

WORKERS = st.fixed_dictionaries({"npu": st.integers(1, 2), "cpu": st.integers(1, 2)})


def by_number(work: Work, waits: bool = False) -> Order:
    return Order(tuple(range(len(work))), waits)


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> object:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@settings(max_examples=60, deadline=None)
@given(work=works(most=10), workers=WORKERS, waits=st.booleans(), seed=st.integers(0, 99))
def test_what_waits_comes_later_and_no_method_runs_twice_at_once(
    work: Work, workers: dict[str, int], waits: bool, seed: int
) -> None:
    delays = random.Random(seed)
    over: set[int] = set()
    running: list[str] = []
    wrong: list[object] = []
    lock = threading.Lock()

    def perform(task: int) -> None:
        method, lane = work.methods[task], work.lanes[task]
        with lock:
            if not over.issuperset(work.before[task]) or method in running:
                wrong.append(task)
            running.append(method)
            if sum(work.lanes[work.methods.index(m)] == lane for m in running) > workers[lane]:
                wrong.append(lane)
            delay = delays.random() * 2e-4
        time.sleep(delay)
        with lock:
            running.remove(method)
            over.add(task)

    ran = dispatch(work, workers, by_number(work, waits), perform)
    assert not wrong
    assert sorted(one.task for one in ran) == list(range(len(work)))
    assert all(one.begin <= one.end and one.worker < workers[work.lanes[one.task]] for one in ran)


def test_tasks_of_two_lanes_run_at_once() -> None:
    work = Work(("a", "b"), ("npu", "cpu"), (1.0, 1.0), ((), ()))
    met = threading.Barrier(2, timeout=10)  # which one of them alone would break
    dispatch(work, BOTH, by_number(work), lambda _: met.wait() and None)


def test_two_workers_of_a_lane_run_two_methods_at_once() -> None:
    work = Work(("a", "b"), ("cpu", "cpu"), (1.0, 1.0), ((), ()))
    met = threading.Barrier(2, timeout=10)
    ran = dispatch(work, {"cpu": 2}, by_number(work), lambda _: met.wait() and None)
    assert {one.worker for one in ran} == {0, 1}


@pytest.mark.parametrize("schedule", ["in-order", "out-of-order"])
def test_an_order_is_followed_as_it_was_simulated(schedule: Any) -> None:
    """Tasks that end when they should, as told by all that should have begun or ended before: each
    lane runs what it was planned to run, in that order."""
    times = {"qkv.0": 1.01, "attention.0": 3.003, "mlp.0": 2.0007, "mlp.1": 0.50011}
    work = decoder_work(2, 3, times)
    in_order = schedule == "in-order"
    planned = simulate(work, BOTH, InOrder()) if in_order else out_of_order(work, BOTH)
    ends = [a + b for a, b in zip(planned.starts, work.seconds, strict=True)]
    begun = [threading.Event() for _ in ends]
    over = [threading.Event() for _ in ends]
    order: list[int] = []

    def perform(task: int) -> None:
        order.append(task)
        begun[task].set()
        for other, end in enumerate(ends):
            if planned.starts[other] < ends[task]:
                assert begun[other].wait(10)
            if end < ends[task]:
                assert over[other].wait(10)
        over[task].set()

    dispatch(work, BOTH, make_order(work, BOTH, schedule), perform)
    for lane in BOTH:
        wanted = [task for task in planned.order if work.lanes[task] == lane]
        assert [task for task in order if work.lanes[task] == lane] == wanted


def test_overtaking_and_waiting() -> None:
    """The first task of the CPU's order becomes ready last: with waiting, the other one follows."""
    work = Work(("a", "b", "c"), ("npu", "cpu", "cpu"), (1.0, 1.0, 1.0), ((), (0,), ()))
    held = threading.Event()

    def run(waits: bool) -> list[int]:
        order: list[int] = []
        held.clear()

        def perform(task: int) -> None:
            if task == 0:
                held.wait(0.2 if waits else 10)
            order.append(task)
            held.set()

        dispatch(work, BOTH, by_number(work, waits), perform)
        return order

    assert run(waits=True) == [0, 1, 2]
    assert run(waits=False) == [2, 0, 1]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [0, 3, 11])
def test_a_task_that_raises_ends_all(error: BaseException, failing: int) -> None:
    work = decoder_work(2, 2, {})
    begun: list[int] = []

    def perform(task: int) -> None:
        begun.append(task)
        time.sleep(1e-4)
        if task == failing:
            raise error

    with pytest.raises(TaskFailed) as raised:
        dispatch(work, BOTH, by_number(work), perform)
    assert (raised.value.task, raised.value.error) == (failing, error)
    behind = {failing}
    for task, needed in enumerate(work.before):
        if behind.intersection(needed):
            behind.add(task)
    assert behind.intersection(begun) == {failing}


def test_of_several_failures_the_first_in_the_serial_order_is_told() -> None:
    work = Work(("a", "b"), ("npu", "cpu"), (1.0, 1.0), ((), ()))
    met = threading.Barrier(2, timeout=10)

    def perform(task: int) -> None:
        met.wait()
        time.sleep(0.02 if task == 0 else 0)
        raise ValueError(task)

    with pytest.raises(TaskFailed) as raised:
        dispatch(work, BOTH, by_number(work), perform)
    assert raised.value.task == 0 and raised.value.error.args == (0,)


def test_an_interrupt_waits_for_what_runs_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = decoder_work(2, 2, {})
    done: list[int] = []
    begun = threading.Event()

    def perform(task: int) -> None:
        begun.set()
        time.sleep(0.05)
        done.append(task)

    def interrupted(self: object) -> None:
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatching._Shared, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dispatch(work, BOTH, by_number(work), perform)
    assert 1 <= len(done) <= 2
    time.sleep(0.1)
    assert len(done) <= 2


def test_a_second_interrupt_does_not_leave_a_thread_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = threading.Event()
    thread = threading.Thread(target=held.wait)
    thread.start()
    join: Callable[..., None] = threading.Thread.join
    impatient = iter([True, True])

    def interrupted(self: threading.Thread) -> None:
        if next(impatient, False):
            raise KeyboardInterrupt
        held.set()
        join(self)

    work = decoder_work(1, 1, {})
    shared = dispatching._Shared(work, by_number(work), lambda task: None)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dispatching._end(shared, [thread])
    assert not thread.is_alive() and shared.stopped


def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    work = decoder_work(1, 1, {})
    start: Callable[..., None] = threading.Thread.start

    def failing(self: threading.Thread) -> None:
        if "cpu" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        dispatch(work, BOTH, by_number(work), lambda task: None)
