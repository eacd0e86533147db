"""Calls that an engine runs as a whole, held against PyTorch."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpack.multimethod.errors import ExecutionError
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.runtime.graph import Call, CallsFailed, Graph, Result, Rows


@pytest.fixture
def program(foreign: Path) -> Program:
    return load(foreign, engine="native", threads=1)


def graph(program: Program, *calls: Call) -> Graph:
    made = program.graph(calls)
    assert made is not None
    return made


def run(graph: Graph, *tensors: Tensor, calls: int, **how: Any) -> Any:
    how = {"waits": False, "workers": (1,), "ranks": range(calls)} | how
    return graph.run(list(tensors), **how)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def whole(tensor: int, of: Tensor) -> Rows:
    return Rows(tensor, 0, 0, of.shape[0])


def test_rows_of_tensors_in_any_order_are_read_and_written(program: Program) -> None:
    """Inputs whose elements lie apart, outputs that go to rows which do, and one that has more rows
    than there is room for."""
    a, b = torch.randn(9, 4).t(), torch.randn(4, 7)
    product, plus = torch.zeros(5, 9).t()[:, :5], torch.zeros(8, 4)
    calls = [
        Call(
            "products",
            inputs=(Rows(0, 1, 2, 4), Rows(1, 1, 1, 5)),
            copies=((0, Rows(2, 0, 3, 2)), (1, Rows(3, 0, 4, 3)), (1, Rows(4, 0, 0, 4))),
        )
    ]
    third = torch.zeros(4, 8)[:, ::2]
    ran = run(graph(program, *calls), a, b, product, plus, third, calls=1)
    left, right = a[:, 2:6], b[:, 1:6]
    expected = torch.zeros(9, 5)
    expected[3:5] = (left @ right)[:2]
    torch.testing.assert_close(product, expected)
    assert torch.equal(plus[4:7], (left + 1)[:3]) and not plus[:4].any() and not plus[7:].any()
    assert torch.equal(third, left + 1)
    assert [one[:2] for one in ran] == [(0, 0)] and ran[0][2] <= ran[0][3] <= time.perf_counter()


def test_results_go_from_call_to_call(program: Program) -> None:
    """Also to several, and where calls run on lanes of their own; a call without a method only
    waits."""
    x = torch.randn(4, 4)
    out = torch.zeros(3, 4, 4)
    calls = [
        Call("products", 0, (), (Rows(0, 0, 0, 4), Rows(0, 0, 0, 4))),
        Call("products", 1, (0,), (Result(0, 0), Result(0, 1)), ((0, Rows(1, 0, 0, 4)),)),
        Call(None, 0, (0,)),
        Call("products", 0, (1, 2), (Result(0, 1), Result(1, 1)), ((0, Rows(2, 0, 0, 4)),)),
    ]
    for _ in range(3):
        run(graph(program, *calls), x, out[0], out[1], calls=4, workers=(1, 2))
        product, plus = x @ x, x + 1
        torch.testing.assert_close(out[0], product @ plus)
        torch.testing.assert_close(out[1], plus @ (product + 1))


def test_calls_of_one_method_take_turns_and_others_do_not(program: Program) -> None:
    a = torch.randn(2, 2)
    made = torch.zeros(2, 2)
    rows = Rows(0, 0, 0, 2)
    calls = [Call("delegated", lane, inputs=(rows,)) for lane in (0, 1)]
    calls.append(Call("delegated", 0, (0, 1), (rows,), ((0, Rows(1, 0, 0, 2)),)))
    ran = run(graph(program, *calls), a, made, calls=3, workers=(1, 1), delays=[20_000] * 3)
    spans = sorted((begin, end) for _, _, begin, end in ran)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert torch.equal(made, a + a)


@pytest.mark.parametrize("waits", [True, False])
def test_a_lane_waits_for_its_most_urgent_call_or_takes_another(
    program: Program, waits: bool
) -> None:
    x = torch.ones(2, 2)
    rows = Rows(0, 0, 0, 2)
    calls = [
        Call("products", 0, (), (Rows(1, 0, 0, 4), Rows(1, 0, 0, 4))),
        Call("delegated", 1, (0,), (rows,)),
        Call("delegated", 1, (), (rows,)),
    ]
    ran = run(
        graph(program, *calls), x, torch.ones(4, 4), calls=3, workers=(1, 1), waits=waits,
        delays=[500_000, 0, 0],
    )  # fmt: skip
    order = [one[0] for one in ran if one[0] > 0]
    assert order == ([1, 2] if waits else [2, 1])


def test_a_method_whose_memory_is_laid_out_otherwise_is_not_run_so(program: Program) -> None:
    assert program.graph([Call("pooled", inputs=(Rows(0, 0, 0, 1),))]) is None


def test_the_stock_engine_runs_no_graphs(foreign: Path) -> None:
    stock = load(foreign, engine="stock")
    assert stock.graph([Call("delegated", inputs=(Rows(0, 0, 0, 2),))]) is None


class TestFailures:
    def failing(self, program: Program) -> Graph:
        """The second call is given more columns than there is room for."""
        rows = Rows(0, 0, 0, 4)
        return graph(
            program,
            Call("products", inputs=(rows, rows), copies=((0, Rows(2, 0, 0, 4)),)),
            Call("products", 0, (0,), (rows, Rows(1, 0, 0, 4))),
            Call("products", 0, (1,), (rows, rows), ((1, Rows(2, 0, 0, 4)),)),
        )

    def test_the_call_is_named_and_the_program_remains_usable(self, program: Program) -> None:
        x, out, before = torch.randn(4, 4), torch.zeros(4, 4), threads()
        with pytest.raises(CallsFailed) as raised:
            run(self.failing(program), x, torch.ones(4, 12), out, calls=3)
        assert raised.value.call == 1
        with pytest.raises(ExecutionError) as alone:
            raise raised.value.error
        assert "products: ExecuTorch failed to run it" in str(alone.value)
        assert threads() == before
        torch.testing.assert_close(out, x @ x)  # what came before; the last call never ran
        torch.testing.assert_close(program.run_method("products", x, x)[0], x @ x)
        run(self.failing(program), x, x, out, calls=3)
        assert torch.equal(out, x + 1)

    def test_an_output_that_does_not_fit_is_a_failure(self, program: Program) -> None:
        x = torch.ones(2, 2)
        wrong = graph(program, Call("delegated", inputs=(whole(0, x),), copies=((0, whole(1, x)),)))
        for other in (torch.ones(2, 3), torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2, 1)):
            with pytest.raises(CallsFailed) as raised:
                run(wrong, x, other, calls=1)
            assert "an output does not fit where it is to go" in str(raised.value.error)
        with pytest.raises(CallsFailed, match="rows beyond a tensor"):
            run(wrong, x, torch.ones(1, 2), calls=1)

    @pytest.mark.parametrize("call", range(3))
    def test_a_thread_that_is_ended_ends_the_run(self, program: Program, call: int) -> None:
        x, rows, before = torch.ones(2, 2), Rows(0, 0, 0, 2), threads()
        calls = [Call("delegated", n % 2, tuple(range(n)), (rows,)) for n in range(3)]
        delays = [-1 if number == call else 0 for number in range(3)]
        made = graph(program, *calls)
        for _ in range(20):
            with pytest.raises(CallsFailed) as raised:
                run(made, x, calls=3, workers=(1, 2), delays=delays)
            assert raised.value.call == call
            assert "the thread that ran it has been ended" in str(raised.value.error)
        assert threads() == before
        assert torch.equal(program.run_method("delegated", x)[0], x + x)
        assert len(run(made, x, calls=3, workers=(1, 2))) == 3

    def test_a_signal_ends_it_once_its_calls_are_over(self, program: Program) -> None:
        x, rows, before = torch.ones(2, 2), Rows(0, 0, 0, 2), threads()
        out = torch.zeros(50, 2, 2)
        made = graph(
            program,
            *(Call("delegated", 0, (), (rows,), ((0, Rows(1 + n, 0, 0, 2)),)) for n in range(50)),
        )
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            run(made, x, *out, calls=50, delays=[100_000] * 50)
        timer.join()
        assert threads() <= before
        assert out[0].any() and not out[-1].any()  # what had begun ended, and no more began
        assert len(run(made, x, *out, calls=50)) == 50 and out[-1].any()

    def test_what_waits_for_itself_is_refused(self, program: Program) -> None:
        with pytest.raises(ValueError, match="waits for one that does not come before it"):
            program.graph([Call("delegated", 0, (0,), (Rows(0, 0, 0, 2),))])


def test_a_graph_outlives_what_becomes_of_its_methods(program: Program) -> None:
    x, out = torch.ones(2, 2), torch.zeros(2, 2)
    made = graph(program, Call("delegated", inputs=(whole(0, x),), copies=((0, whole(1, x)),)))
    for change in (program.reset, lambda: program.unload("delegated"), program.reset):
        change()
        out.zero_()
        run(made, x, out, calls=1)
        assert torch.equal(out, x + x)
