"""State: shared where the spec says so, private elsewhere, and back at its start after reset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpack.multimethod import load
from mmpack.multimethod.flow.program import Program

ONE = torch.ones(2)


@pytest.fixture
def program(toy: Path) -> Program:
    return load(toy)


def test_state_starts_at_its_initial_values_whichever_method_comes_first(toy: Path) -> None:
    assert load(toy).run_method("add", ONE).total.tolist() == [8.0, 0.0]
    assert load(toy).run_method("scaled", 2 * ONE).product.tolist() == [14.0, -2.0]


def test_what_one_method_writes_another_reads(program: Program) -> None:
    program.run_method("add", torch.tensor([1.0, 5.0]))
    program.run_method("add", torch.tensor([1.0, 5.0]))
    assert program.run_method("scaled", ONE).product.tolist() == [9.0, 9.0]


def test_a_method_loaded_late_does_not_undo_what_was_written(program: Program) -> None:
    program.run_method("add", ONE)
    for name in ("scaled", "matmul", "blend", "window"):
        program[name].prepare()
    assert program.run_method("add", ONE).total.tolist() == [9.0, 1.0]
    assert program.run_method("scaled", ONE).product.tolist() == [9.0, 1.0]


def test_other_methods_do_not_disturb_state(program: Program) -> None:
    program.run_method("add", ONE)
    program.run_method("matmul", torch.randn(8, 4), torch.randn(4, 8))
    program.run_method("window", torch.randn(16, 2), torch.randn(16, 2))
    assert program.run_method("scaled", ONE).product.tolist() == [8.0, 0.0]


def test_private_state_is_each_method_s_own(program: Program) -> None:
    assert [program.run_method("add", ONE).calls.item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert program.run_method("scaled", ONE).calls.item() == 1.0
    assert program.run_method("add", ONE).calls.item() == 4.0


def test_reset_puts_all_state_back(program: Program) -> None:
    first = program.run_method("add", ONE)
    program.run_method("scaled", ONE)
    program.reset()
    again = program.run_method("add", ONE)
    assert torch.equal(again.total, first.total) and torch.equal(again.calls, first.calls)
    assert program.run_method("scaled", ONE).calls.item() == 1.0


def test_a_method_taken_before_reset_is_reset_too(program: Program) -> None:
    add = program["add"]
    add(ONE)
    program.reset()
    assert add(ONE).total.tolist() == [8.0, 0.0]
    assert program.run_method("scaled", ONE).product.tolist() == [8.0, 0.0]


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.sampled_from(["add", "scaled", "matmul", "reset"]), max_size=12))
def test_any_order_of_calls_gives_what_eager_gives(toy: Path, order: list[str]) -> None:
    program = load(toy)
    total, calls = torch.tensor([7.0, -1.0]), {"add": 0, "scaled": 0}
    for number, name in enumerate(order):
        value = torch.tensor([float(number), 2.0])
        if name == "reset":
            program.reset()
            total, calls = torch.tensor([7.0, -1.0]), {"add": 0, "scaled": 0}
            continue
        if name == "matmul":
            program.run_method("matmul", torch.ones(8, 4), torch.ones(4, 8))
            continue
        calls[name] += 1
        total = total + value if name == "add" else total
        result: Any = program.run_method(name, value)
        assert torch.equal(result[0], total if name == "add" else total * value)
        assert result.calls.item() == calls[name]


def test_unloading_leaves_state_alone(program: Program) -> None:
    program.run_method("add", ONE)
    for name in program:
        program.unload(name)
    assert program.run_method("scaled", ONE).product.tolist() == [8.0, 0.0]
    assert program.run_method("add", ONE).calls.item() == 2.0
