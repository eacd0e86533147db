"""Flows whose steps keep state: rows masked by position, of which a program holds one context's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpack.multimethod.errors import CallError, FlowError, VerifyError
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.program import Program, load

CHUNK, ROWS = 4, 13

MODEL = """
class Mean(nn.Module):
    # The mean of all rows so far, which are kept.
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(13, 3), persistent=False)

    def step(self, x, positions):
        first = (positions[:, None] == positions).int().argmax(1)
        self.rows.index_copy_(0, positions, x[first])
        seen = (torch.arange(13) <= positions[:, None]).float()
        return seen @ self.rows / (positions[:, None] + 1)

    def blind(self, x):
        self.rows[:4] += x
        return self.rows[:4] * 1

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.line = Mean(), nn.Linear(3, 3)

    def forward(self, input):  # as nn.Linear calls it
        x = self.line(input)
        return x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]
"""
SPEC = """
dims: {chunk: 4, one: 1}
methods:
  line.{n}:
    each: {n: [chunk, one]}
    module: line
    target: plain
    inputs: {input: ["{n}", 3]}
    outputs: x
  mean.{n}:
    each: {n: [chunk, one]}
    module: mean
    call: step
    target: plain
    inputs:
      x: ["{n}", 3]
      positions: {shape: ["{n}"], dtype: int64, range: 0..12}
    outputs: y
state: {shared: [mean.rows]}
flow:
  prefill: {cut: {input: chunk}, steps: [line.chunk, mean.chunk], outputs: [y], reference: forward}
  decode: {cut: {input: one}, steps: [line.one, mean.one], outputs: [y], reference: forward}
"""


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, build_cache: Path
) -> tuple[Path, Callable[[Tensor], Tensor]]:
    """The program, and its model in plain PyTorch, which reads everything at once."""
    from ..compile.projects import Project

    project = Project(tmp_path_factory.mktemp("flow"), build_cache)
    project.model(MODEL).spec(SPEC).build()
    return project.output, project.load_model()


@pytest.fixture
def program(made: tuple[Path, Any]) -> Program:
    return load(made[0])


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def run(program: Program, name: str, x: Tensor, context: Context | None = None) -> Tensor:
    y: Tensor = program.flow(name).run(x, context=context).y
    return y


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_a_fresh_run_sees_nothing_of_the_one_before(
    program: Program, made: tuple[Path, Any], name: str
) -> None:
    for seed, length in enumerate((ROWS, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2, ROWS)):
        x = rows(length, seed)
        torch.testing.assert_close(run(program, name, x), made[1](x))


def test_a_context_goes_on_in_either_flow(program: Program, made: tuple[Path, Any]) -> None:
    x, context, got = rows(ROWS), Context(), []
    for begin, end, name in [(0, 3, "prefill"), (3, 5, "decode"), (5, 11, "prefill")]:
        got.append(run(program, name, x[begin:end], context))
    got.append(run(program, "prefill", x[11:], context))  # its piece ends behind the last row
    torch.testing.assert_close(torch.cat(got), made[1](x))


@pytest.mark.parametrize("schedule", ["in-order", "out-of-order"])
def test_a_pipeline_keeps_the_rows_that_a_serial_run_keeps(program: Program, schedule: Any) -> None:
    x, flow = rows(ROWS), program.flow("prefill")
    for length in (1, CHUNK, ROWS):
        expected = flow.run(x[:length]).y
        assert torch.equal(flow.run(x[:length], schedule=schedule).y, expected)
    serial, pipelined = Context(), Context()
    expected = [flow.run(part, context=serial).y for part in (x[:6], x[6:12])]
    expected.append(run(program, "decode", x[12:], serial))
    got = [flow.run(part, context=pipelined, schedule=schedule).y for part in (x[:6], x[6:12])]
    got.append(run(program, "decode", x[12:], pipelined))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_what_the_padding_has_is_not_kept(program: Program, made: tuple[Path, Any]) -> None:
    x, context = rows(3), Context()
    run(program, "prefill", x[:2], context)
    torch.testing.assert_close(run(program, "decode", x[2:], context), made[1](x)[2:])


class TestOneContextAtATime:
    def refused(self, program: Program, context: Context, says: str) -> None:
        before = (context.position, dict(context.state))
        with pytest.raises(FlowError, match=says):
            run(program, "decode", rows(1), context)
        assert (context.position, context.state) == before

    def test_another_context_has_taken_over(self, program: Program) -> None:
        one, two = Context(), Context()
        run(program, "prefill", rows(3), one)
        run(program, "prefill", rows(3), two)
        self.refused(program, one, "the rows of this context are no longer in the program's state")
        with pytest.raises(FlowError) as caught:
            run(program, "prefill", rows(1), one)
        assert str(caught.value) == (
            "flow 'prefill': the rows of this context are no longer in the program's state: "
            "another run, or a call of a method, wrote to it since (buffer 'mean.rows'). A program "
            "holds the state of one context at a time: feed all rows again with a fresh Context, "
            "or load the program once for each"
        )
        run(program, "decode", rows(1), two)

    def test_a_run_without_a_context_takes_over(self, program: Program) -> None:
        context = Context()
        run(program, "prefill", rows(3), context)
        run(program, "decode", rows(1))
        self.refused(program, context, "another run, or a call of a method, wrote to it since")

    def test_a_method_called_by_hand_takes_over(self, program: Program) -> None:
        context = Context()
        run(program, "prefill", rows(3), context)
        program.run_method("line.one", rows(1))  # which keeps nothing
        run(program, "decode", rows(1), context)
        program.run_method("mean.chunk", rows(4), torch.arange(4))
        self.refused(program, context, "wrote to it since")

    def test_a_reset(self, program: Program) -> None:
        context = Context()
        run(program, "prefill", rows(3), context)
        program.reset()
        self.refused(program, context, "the program was reset since")
        run(program, "prefill", rows(3))
        self.refused(program, context, "wrote to it since")

    def test_another_program(self, program: Program, made: tuple[Path, Any]) -> None:
        context, other = Context(), load(made[0])
        run(program, "prefill", rows(3), context)
        self.refused(other, context, "the program was reset since")
        run(other, "prefill", rows(3))
        self.refused(other, context, "wrote to it since")
        run(program, "decode", rows(1), context)

    def test_a_context_without_state(self, program: Program) -> None:
        says = "fed with state none, expected mean.rows"
        self.refused(program, Context(position=2), says)

    def test_a_fresh_context_may_always_begin(
        self, program: Program, made: tuple[Path, Any]
    ) -> None:
        old = Context()
        run(program, "prefill", rows(5), old)
        x, context = rows(6, 9), Context()
        got = [run(program, "prefill", x[:4], context), run(program, "decode", x[4:], context)]
        torch.testing.assert_close(torch.cat(got), made[1](x))


class TestRuns:
    def failing(self, program: Program, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        """Have the `at`th call of a step with state fail, after it wrote."""
        method = program["mean.chunk"]

        class Broken:
            last_call = property(lambda _: method.last_call)
            calls = 0

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                result = method(*args, **kwargs)
                if self.calls == at:
                    raise CallError("no more")
                return result

        monkeypatch.setitem(program._methods, "mean.chunk", Broken())

    def test_one_that_fails_leaves_its_context_as_it_was(
        self, program: Program, made: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, context = rows(ROWS), Context()
        got = [run(program, "prefill", x[:3], context)]
        self.failing(program, monkeypatch, at=2)
        with pytest.raises(CallError, match="no more"):
            run(program, "prefill", rows(9, 5), context)
        monkeypatch.undo()
        assert context.position == 3
        got.append(run(program, "prefill", x[3:], context))
        torch.testing.assert_close(torch.cat(got), made[1](x))

    def test_one_that_fails_takes_the_state_from_others(
        self, program: Program, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        context = Context()
        run(program, "prefill", rows(3), context)
        self.failing(program, monkeypatch, at=1)
        with pytest.raises(CallError, match="no more"):
            run(program, "prefill", rows(3))
        monkeypatch.undo()
        with pytest.raises(FlowError, match="wrote to it since"):
            run(program, "decode", rows(1), context)

    def test_more_rows_than_there_is_room_for(self, program: Program) -> None:
        context = Context()
        with pytest.raises(FlowError) as caught:
            run(program, "prefill", rows(ROWS + 1), context)
        assert str(caught.value) == (
            "flow 'prefill': 0 rows so far and 14 more do not fit: its steps with state take "
            "positions 0 to 12"
        )
        run(program, "prefill", rows(ROWS), context)
        with pytest.raises(FlowError, match="13 rows so far and 1 more do not fit"):
            run(program, "decode", rows(1), context)
        assert context.position == ROWS


class TestBuilds:
    def refused(self, project: Any, spec: str, kind: type[Exception]) -> str:
        project.model(MODEL)
        with pytest.raises(kind) as caught:
            project.spec(spec).build()
        return str(caught.value)

    def test_a_step_that_does_not_know_its_position(self, project: Any) -> None:
        blind = """
        dims: {chunk: 4}
        methods:
          blind: {module: mean, call: blind, target: plain, inputs: {x: [chunk, 3]}, outputs: y}
        flow:
          go: {cut: {x: chunk}, steps: [blind], outputs: [y], reference: none}
        """
        told = self.refused(project, blind, FlowError)
        assert re.search(r"spec\.yaml:\d+:\d+: flow\.go\.steps\[0\]: flow 'go': ", told)
        assert "method 'blind' has state, the buffer 'mean.rows', and does not take " in told
        assert "'positions'" in told and "`append`" in told

    def test_a_range_that_is_not_said_or_begins_later(self, project: Any) -> None:
        told = self.refused(project, SPEC.replace("range: 0..12", "range: 1..12"), FlowError)
        assert "a `range` of its input 'positions' that begins at 0 must say which" in told

    def test_rows_that_a_second_run_sees_of_the_first(self, project: Any) -> None:
        """Each is right alone: there is nothing behind its last row yet."""
        everything = MODEL.replace("<= positions[:, None]", ">= -positions[:, None]")
        prefill = re.search(r"  prefill: .*\n", SPEC)
        assert prefill is not None
        project.model(everything).spec(SPEC.replace(prefill[0], ""))
        with pytest.raises(VerifyError, match="flow decode: output 'y' at 3 rows is off by"):
            project.build()

    def test_a_method_for_the_last_row_that_keeps_rows(self, project: Any) -> None:
        counting = """
        dims: {chunk: 4}
        methods:
          line: {module: line, target: plain, inputs: {input: [chunk, 3]}, outputs: y}
          one: {module: ".", call: count, target: plain, inputs: {input: [1, 3]}, outputs: y}
        state: {private: [mean.rows]}
        flow:
          go: {cut: {input: chunk}, steps: [{run: line, last: one}], outputs: [y], reference: none}
        """
        count = "    def count(self, input):\n        self.mean.rows[:1] += input\n"
        count += "        return self.line(input) + 0 * self.mean.rows[:1]\n"
        project.model(MODEL + count).spec(counting)
        with pytest.raises(FlowError) as caught:
            project.build()
        assert re.search(r"spec\.yaml:\d+:\d+: flow\.go\.steps\[0\]\.last: ", str(caught.value))
        assert "method 'one' has some, the buffer 'mean.rows'" in str(caught.value)
