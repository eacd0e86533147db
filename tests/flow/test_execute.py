"""Flows at work: a model read in chunks and then row by row is the model that reads all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpack.multimethod.errors import CallError, FlowError
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.link import link

CHUNK, LONGEST = 4, 24

MODEL = """
class Front(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.qk, self.v = model.qk, model.v
    def forward(self, x):
        return self.qk(x), self.qk(x) * 0.5, self.v(x)

class Back(nn.Module):
    def __init__(self, model):
        super().__init__()
    def forward(self, q, k, v, positions):
        hidden = torch.arange(k.shape[1]) > positions[:, None]
        scores = (q @ k.transpose(1, 2)).masked_fill(hidden, float("-inf"))
        return scores.softmax(-1) @ v, positions.to(torch.float32)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.qk, self.v = nn.Linear(3, 5), nn.Linear(3, 2)
    def forward(self, x):
        q, k, v = Front(self)(x)
        positions = torch.arange(x.shape[1])
        return Back(self)(q, k, v, positions)
"""
SPEC = """
dims: {chunk: 4, one: 1, batch: 1, kv: {min: 4, max: 24, step: 4}}
methods:
  front.{n}:
    each: {n: [chunk, one]}
    module: "."
    wrapper: model.py:Front
    target: plain
    inputs: {x: [batch, "{n}", 3]}
    outputs: [q, k, v]
  back.{n}:
    each: {n: [chunk, one]}
    module: "."
    wrapper: model.py:Back
    target: plain
    inputs:
      q: [batch, "{n}", 5]
      k: [batch, kv, 5]
      v: [batch, kv, 2]
      positions: {shape: ["{n}"], dtype: int64, range: 0..23}
    outputs: [y, where]
flow:
  prefill:
    cut: {x: chunk}
    steps:
      - {run: front.chunk, append: {k: keys, v: values}}
      - {run: back.chunk, with: {k: keys, v: values}}
    outputs: [y, where]
  decode:
    cut: {x: one}
    steps:
      - {run: front.one, append: {k: keys, v: values}}
      - {run: back.one, with: {k: keys, v: values}}
    outputs: [y, where]
"""

Eager = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> tuple[Program, Eager]:
    """The program, and its model in plain PyTorch, which reads everything at once."""
    from ..compile.projects import Project

    project = Project(tmp_path_factory.mktemp("flow"), build_cache)
    project.model(MODEL).spec(SPEC)
    program = project.program()
    model = project.load_model()

    def eager(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return model(x)  # type: ignore[no-any-return]

    return program, eager


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, count, 3, generator=torch.Generator().manual_seed(seed))


def agree(got: Any, expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_flows_run_methods_that_were_renamed_when_linked(
    made: tuple[Program, Eager], tmp_path: Path
) -> None:
    program, eager = made
    rename = {"front.chunk": "first", "back.chunk": "back.one", "back.one": "back.chunk"}
    link([program.path], tmp_path / "x.pte", rename=rename)
    linked, context, x = load(tmp_path / "x.pte"), Context(), rows(CHUNK + 1)
    assert {"first", "front.one"} < set(linked)
    chunk = linked.flow("prefill").run(x[:, :CHUNK], context=context)
    row = linked.flow("decode").run(x[:, CHUNK:], context=context)
    torch.testing.assert_close(torch.cat([chunk.y, row.y], 1), eager(x)[0])


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 2, 24])
def test_chunks_are_the_whole(made: tuple[Program, Eager], length: int) -> None:
    program, eager = made
    x = rows(length)
    got = program.flow("prefill").run(x)
    assert got._fields == ("y", "where")
    agree(got, eager(x))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_context_goes_on_where_it_stopped(
    made: tuple[Program, Eager], parts: list[tuple[bool, int]]
) -> None:
    program, eager = made
    whole = rows(LONGEST)
    expected = eager(whole)
    context = Context()
    for chunked, length in parts:
        begin = context.position
        if begin + length > LONGEST:
            with pytest.raises(FlowError, match="do not fit into cache"):
                program.flow("prefill").run(rows(length), context=context)
            assert context.position == begin
            continue
        flow = program.flow("prefill" if chunked else "decode")
        got = flow.run(whole[:, begin : begin + length], context=context)
        assert context.position == begin + length
        torch.testing.assert_close(got.y, expected[0][:, begin : begin + length])
        torch.testing.assert_close(got.where, expected[1][begin : begin + length])


def test_contexts_do_not_mix(made: tuple[Program, Eager]) -> None:
    program, eager = made
    inputs, contexts = [rows(10, seed=1), rows(10, seed=2)], [Context(), Context()]
    got: list[list[torch.Tensor]] = [[], []]
    for begin, end, name in [(0, 5, "prefill"), (5, 6, "decode"), (6, 10, "prefill")]:
        for number, (x, context) in enumerate(zip(inputs, contexts, strict=True)):
            result = program.flow(name).run(x[:, begin:end], context=context)
            got[number].append(result.y)
    for x, pieces in zip(inputs, got, strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim=1), eager(x)[0])


def test_without_a_context_every_run_starts_afresh(made: tuple[Program, Eager]) -> None:
    program, _ = made
    one, two = (program.flow("prefill").run(rows(6)) for _ in range(2))
    assert torch.equal(one.y, two.y) and torch.equal(one.where, two.where)


def test_nothing_of_the_callers_is_changed_or_kept(made: tuple[Program, Eager]) -> None:
    program, _ = made
    x = rows(6)
    before, context = x.clone(), Context()
    first = program.flow("prefill").run(x, context=context)
    assert torch.equal(x, before)
    kept = first.y.clone()
    x.zero_()
    program.flow("decode").run(rows(1), context=context)
    assert torch.equal(first.y, kept)
    first.y.zero_()
    again = program.flow("prefill").run(before)
    assert torch.equal(again.y, kept)


@pytest.mark.parametrize("schedule", ["serial", "in-order"])
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_outputs_keep_no_more_memory_than_they_have(
    made: tuple[Program, Eager], length: int, schedule: Any
) -> None:
    """Padded rows of a last piece are not a part of them, and no two share theirs."""
    program, _ = made
    got = program.flow("prefill").run(rows(length), schedule=schedule)
    assert got.y.untyped_storage().nbytes() == got.y.nbytes
    assert got.where.untyped_storage().nbytes() == got.where.nbytes
    assert got.y.is_contiguous() and got.where.is_contiguous()
    kept = got.where.clone()
    got.y.zero_()
    assert torch.equal(got.where, kept)


@pytest.mark.parametrize(("flow", "length"), [("decode", 1), ("prefill", CHUNK)])
def test_a_single_piece_in_full_is_its_method_s_result_uncopied(
    made: tuple[Program, Eager], monkeypatch: pytest.MonkeyPatch, flow: str, length: int
) -> None:
    program, eager = made
    expected = eager(rows(length))
    monkeypatch.setattr(torch, "cat", None)
    agree(program.flow(flow).run(rows(length)), expected)


def test_a_slice_is_as_good_as_a_tensor_of_its_own(made: tuple[Program, Eager]) -> None:
    program, _ = made
    wide = torch.randn(1, 6, 9)
    got = program.flow("prefill").run(wide[:, :, ::3])
    assert torch.equal(got.y, program.flow("prefill").run(wide[:, :, ::3].contiguous()).y)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "needs 'x'"),
        ((rows(2), rows(2)), {}, "takes 1 input, got 2"),
        ((), {"xx": rows(2)}, "has no input 'xx'; did you mean 'x'?"),
        ((rows(2),), {"x": rows(2)}, "input 'x' was given twice"),
        ((rows(2)[0],), {}, "input 'x' must have 3 axes, got [2, 3]"),
        ((rows(2)[:, :0],), {}, "its input is empty"),
        ((rows(2).double(),), {}, "must be float32[1, any length, 3], got float64[1, 2, 3]"),
        ((rows(2)[..., :2],), {}, "must be float32[1, any length, 3], got float32[1, 2, 2]"),
        ((rows(2).expand(2, 2, 3),), {}, "must be float32[1, any length, 3], got float32[2, 2, 3]"),
        (([1.0],), {}, "input 'x' must be a tensor, got list"),
        ((rows(25),), {}, "0 rows so far and 25 more do not fit into cache 'keys' (kv=4..24:4)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    made: tuple[Program, Eager], args: tuple[Any, ...], kwargs: dict[str, Any], says: str
) -> None:
    context = Context()
    with pytest.raises(FlowError) as caught:
        made[0].flow("prefill").run(*args, context=context, **kwargs)
    assert str(caught.value).startswith("flow 'prefill': ")
    assert says in str(caught.value)
    assert context == Context()


def test_a_run_that_fails_half_way_leaves_the_context_as_it_was(
    made: tuple[Program, Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, eager = load(made[0].path), made[1]
    context, x = Context(), rows(14)
    flow = program.flow("prefill")
    flow.run(x[:, :3], context=context)
    back, calls = program["back.chunk"], []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise CallError("no more")
        return back(*args, **kwargs)

    monkeypatch.setitem(program._methods, "back.chunk", failing)
    with pytest.raises(CallError, match="no more"):
        flow.run(x[:, 3:], context=context)
    assert context.position == 3
    assert not context.caches["keys"][:, 3:].count_nonzero()
    monkeypatch.undo()
    torch.testing.assert_close(flow.run(x[:, 3:], context=context).y, eager(x)[0][:, 3:])


def test_a_context_that_other_flows_fed_is_refused(made: tuple[Program, Eager]) -> None:
    context = Context()
    made[0].flow("prefill").run(rows(2), context=context)
    del context.caches["values"]
    with pytest.raises(FlowError, match="fed with caches keys, expected keys, values"):
        made[0].flow("decode").run(rows(1), context=context)


def test_a_context_of_another_shape_is_refused(made: tuple[Program, Eager]) -> None:
    context = Context(caches={"keys": torch.zeros(1, 8, 5), "values": torch.zeros(1, 24, 2)})
    with pytest.raises(FlowError, match="cache 'keys' of this context is") as caught:
        made[0].flow("prefill").run(rows(2), context=context)
    assert "must be [1, 24, 5]" in str(caught.value)


def test_a_flow_that_is_not_there_is_refused(made: tuple[Program, Eager]) -> None:
    with pytest.raises(FlowError, match="no flow 'prefil'; did you mean 'prefill'"):
        made[0].flow("prefil")


def test_building_refuses_a_flow_that_is_not_its_reference(project: Any) -> None:
    from mmpack.multimethod.errors import FlowError, VerifyError

    project.model(
        MODEL.replace("return Back(self)(q, k, v, positions)", "return v, positions.float()")
    )
    with pytest.raises(VerifyError, match="flow prefill: output 'y' at 10 rows is off by"):
        project.spec(SPEC).build()
    project.model(MODEL + "\n    def whole(self, z):\n        return z, z\n")
    project.spec(SPEC.replace("cut: {x: chunk}", "cut: {x: chunk}\n    reference: whole"))
    with pytest.raises(FlowError) as caught:
        project.build()
    assert f"{project.path}:28:16: flow.prefill.reference: " in str(caught.value)
    assert "the model's whole takes no input 'x'; known: z" in str(caught.value)
    assert "`reference: none` leaves the flow unchecked" in str(caught.value)


def test_a_flow_that_is_called_like_a_method_is_told_apart(toy: Path) -> None:
    program = load(toy)
    program.__dict__["flows"] = {"go": None}
    with pytest.raises(
        CallError, match=r"toy\.pte: 'go' is a flow, not a method; in Python, `load"
    ):
        program.run_method("go")
    with pytest.raises(CallError, match="no method 'og'"):
        program.run_method("og")
