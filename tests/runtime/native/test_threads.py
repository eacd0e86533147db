"""Methods called by several threads: they overlap, take turns where they must, and nothing gets
lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmpack.multimethod import ExecutionError, load
from mmpack.multimethod.link import open_program
from mmpack.multimethod.runtime.facts import Facts, read_facts
from mmpack.multimethod.runtime.native.sharing import state_groups

THREADS, CALLS = 8, 10_000
ONE = torch.ones(2)


@contextmanager
def together(*calls: Callable[[], Any]) -> Iterator[None]:
    """Threads that start at once and are over when the block is; what one raises is raised."""
    barrier = threading.Barrier(len(calls) + 1)

    def start(call: Callable[[], Any]) -> None:
        barrier.wait()
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(start, call) for call in calls]
        barrier.wait()
        yield
        for future in running:
            future.result()


def test_no_call_is_lost_or_torn_and_none_disturbs_another(toy: Path) -> None:
    """Many calls by many threads of methods that share state, that have some of their own, and
    that have none; each result is looked at, and the state in the end is what counting says."""
    program = load(toy)
    numbers: list[list[float]] = [[] for _ in range(THREADS)]

    def call(thread: int) -> None:
        generator = torch.Generator().manual_seed(thread)
        chosen = random.Random(thread)
        a, b = torch.randn(8, 4, generator=generator), torch.randn(4, 8, generator=generator)
        w = torch.randn(16, 2, generator=generator)
        first_product, first_window = (
            program["matmul"](a, b).product,
            program["window"](w, w).joined,
        )
        torch.testing.assert_close(first_product, a @ b)
        for _ in range(CALLS):
            added = program.run_method("add", ONE)
            numbers[thread].append(added.calls.item())
            assert added.total[0] - added.total[1] == 8  # both of its numbers from one time
            other = chosen.randrange(4)
            if other == 0:
                product = program.run_method("scaled", ONE).product
                assert product[0] - product[1] == 8
            elif other == 1:
                assert torch.equal(program.run_method("matmul", a, b).product, first_product)
            elif other == 2:
                assert torch.equal(program.run_method("window", w, w).joined, first_window)

    with together(*[lambda thread=thread: call(thread) for thread in range(THREADS)]):  # type: ignore[misc]
        pass
    assert sorted(number for own in numbers for number in own) == [
        float(n + 1) for n in range(THREADS * CALLS)
    ]
    assert all(numbers[thread] == sorted(numbers[thread]) for thread in range(THREADS))
    count = THREADS * CALLS
    assert program.run_method("add", torch.zeros(2)).total.tolist() == [7.0 + count, -1.0 + count]


def test_methods_are_loaded_once_however_many_threads_call_first(toy: Path) -> None:
    for _ in range(5):
        program = load(toy)
        with together(*[lambda: program.run_method("add", ONE)] * 4):  # noqa: B023
            pass
        assert program.run_method("add", ONE).total.tolist() == [12.0, 4.0]


class _Long(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x @ x


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose only method takes a while."""
    from executorch.exir import to_edge

    edge = to_edge(torch.export.export(_Long(), (torch.ones(400, 400),)))
    path = tmp_path_factory.mktemp("long") / "long.pte"
    path.write_bytes(edge.to_executorch().buffer)
    return path


def test_python_goes_on_while_a_method_runs(long: Path) -> None:
    method = load(long)["forward"]
    x = torch.randn(400, 400)
    method.prepare()
    counted, done = 0, threading.Event()

    def call() -> None:
        try:
            method(x)
        finally:
            done.set()

    with together(call):
        while not done.is_set():
            counted += 1
    assert counted > 1000  # the stock engine lets this thread count before and after, some dozens


def test_a_method_is_unloaded_when_nobody_runs_it_any_more(long: Path) -> None:
    program = load(long)
    x = torch.randn(400, 400)
    expected = program["forward"](x).out_0
    run = program["forward"].prepare()
    gone = "method 'forward' has been unloaded"

    def call() -> None:
        try:
            assert torch.equal(run([x])[0], expected)
        except RuntimeError as error:  # the other one was first
            assert str(error) == gone

    with together(call):
        program.unload("forward")
    with pytest.raises(RuntimeError, match=gone):
        run([x])
    assert torch.equal(program["forward"](x).out_0, expected)


def test_failures_are_told_to_the_thread_that_made_them(foreign: Path) -> None:
    program = load(foreign)
    right = torch.ones(3, 4), torch.ones(4, 5)

    def fail() -> None:
        for _ in range(50):
            with pytest.raises(ExecutionError, match=r"in operator aten::mm.out: 0x12"):
                program.run_method("products", torch.ones(3, 3), torch.ones(4, 5))

    def succeed() -> None:
        for _ in range(50):
            assert torch.equal(
                program.run_method("products", *right).out_0, torch.full((3, 5), 4.0)
            )

    with together(fail, succeed, fail):
        pass


SPANS = st.lists(
    st.tuples(st.integers(2, 3), st.integers(0, 30), st.integers(1, 6)).map(
        lambda span: (span[0], span[1], span[1] + span[2])
    ),
    max_size=3,
)


@given(state=st.dictionaries(st.sampled_from("abcdef"), SPANS))
def test_methods_whose_state_overlaps_are_of_one_group(
    toy_facts: Facts, state: dict[str, list[tuple[int, int, int]]]
) -> None:
    found = state_groups(
        {n: attrs.evolve(toy_facts, state=tuple(spans)) for n, spans in state.items()}
    )
    assert set(found) == {name for name, spans in state.items() if spans}
    reached = {name: {name} for name in found}
    for _ in found:  # by brute force: neighbours of neighbours
        for name in found:
            reached[name] |= {
                other
                for near in list(reached[name])
                for other in found
                if any(
                    mine[0] == its[0] and mine[1] < its[2] and its[1] < mine[2]
                    for mine in state[near]
                    for its in state[other]
                )
            }
    for one in found:
        for other in found:
            assert (found[one] == found[other]) == (other in reached[one])


@pytest.fixture(scope="module")
def toy_facts(toy: Path) -> Facts:
    """Those of some method."""
    with open_program(toy) as file:
        return read_facts(file, None)["matmul"]


def test_the_methods_of_a_program_that_share_state_are_of_one_group(toy: Path) -> None:
    program = load(toy)
    found = state_groups(program._facts)
    assert set(found) == {"add", "scaled"} and found["add"] == found["scaled"]
