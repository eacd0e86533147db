"""Methods are called by position and by name, and compute what eager PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import CallError, load
from mmpack.multimethod.flow.program import Program

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
Y = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.25, 9.0]])
PICKS = torch.tensor([2, 0, 0, 1])


@pytest.fixture
def program(toy: Path) -> Program:
    return load(toy)


def test_inputs_are_taken_by_position_by_name_and_mixed(program: Program, toy_model: Any) -> None:
    mixed, picked = toy_model.blend(X, Y, PICKS)
    for result in (
        program.run_method("blend", X, Y, PICKS),
        program.run_method("blend", x=X, y=Y, picks=PICKS),
        program.run_method("blend", picks=PICKS, y=Y, x=X),
        program.run_method("blend", X, picks=PICKS, y=Y),
        program["blend"](X, Y, PICKS),
        program["blend"](X, Y, picks=PICKS),
    ):
        assert torch.equal(result.mixed, mixed)
        assert torch.equal(result.picked, picked)


def test_the_result_is_a_named_tuple(program: Program) -> None:
    result = program.run_method("blend", X, Y, PICKS)
    assert result._fields == ("mixed", "picked")
    assert type(result).__name__ == "blend_outputs"
    mixed, picked = result
    assert mixed is result.mixed and picked is result.picked
    assert program["matmul"](X.new_ones(1, 4), X.new_ones(4, 2))._fields == ("product",)


def test_later_calls_do_not_change_earlier_results(program: Program) -> None:
    first = program.run_method("blend", X, Y, PICKS)
    kept = [value.clone() for value in first]
    for other in (-X, X * 7):
        program.run_method("blend", other, Y, PICKS)
        program.run_method("matmul", torch.ones(8, 4), torch.ones(4, 8))
    assert all(map(torch.equal, first, kept))
    first.mixed.zero_()
    assert torch.equal(program.run_method("blend", X, Y, PICKS).mixed, kept[0])


@pytest.mark.parametrize("m", [1, 5, 8])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_dims_vary_independently_of_each_other(
    program: Program, toy_model: Any, m: int, n: int
) -> None:
    a, b = torch.randn(m, 4), torch.randn(4, n)
    torch.testing.assert_close(program["matmul"](a, b).product, toy_model.matmul(a, b))


def test_a_stepped_dim_takes_every_step(program: Program, toy_model: Any) -> None:
    for w in (4, 8, 12, 16, 8):
        x, y = torch.randn(w, 2), torch.randn(w, 2)
        assert torch.equal(program["window"](x, y).joined, toy_model.window(x, y))


WIDE = torch.arange(48.0).reshape(4, 12)

LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.arange(16.0).reshape(4, 4),
    "transposed": lambda: torch.arange(16.0).reshape(4, 4).t(),
    "strided": lambda: WIDE[:, ::3],
    "every other row": lambda: torch.arange(32.0).reshape(8, 4)[::2],
    "expanded": lambda: torch.arange(4.0).expand(4, 4),
    "a column expanded": lambda: torch.arange(4.0)[:, None].expand(4, 4),
    "flipped": lambda: torch.arange(16.0).reshape(4, 4).flip(0),
    "in the middle of its storage": lambda: WIDE[1:].flatten()[5:21].reshape(4, 4),
    "negative view": lambda: torch._neg_view(torch.arange(16.0).reshape(4, 4)),
    "imaginary part": lambda: torch.complex(WIDE[:, :4], WIDE[:, 4:8]).conj().imag,
    "parameter": lambda: torch.nn.Parameter(torch.arange(16.0).reshape(4, 4)),
    "wants a gradient": lambda: torch.arange(16.0).reshape(4, 4).requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_right_result_also_on_the_short_way(
    program: Program, toy_model: Any, layout: str
) -> None:
    b = torch.randn(4, 3)
    program["matmul"](torch.zeros(4, 4), b)  # the shapes are known from here on
    a = LAYOUTS[layout]()
    expected = toy_model.matmul(a.detach(), b)
    torch.testing.assert_close(program["matmul"](a, b).product, expected)
    assert torch.equal(a, LAYOUTS[layout]())


def test_what_the_runtime_is_given_is_unchanged_by_a_call(program: Program) -> None:
    given = [X.clone(), Y.clone(), PICKS.clone()]
    program.run_method("blend", *given)
    assert all(map(torch.equal, given, (X, Y, PICKS)))


def test_a_rejected_call_leaves_the_method_usable(program: Program, toy_model: Any) -> None:
    program.run_method("blend", X, Y, PICKS)
    for wrong in ((X, Y), (X, Y, PICKS.int()), (X.t(), Y, PICKS), (X, Y[:1], PICKS)):
        with pytest.raises(CallError):
            program.run_method("blend", *wrong)
        result = program.run_method("blend", X, Y, PICKS)
        assert torch.equal(result.mixed, toy_model.blend(X, Y, PICKS)[0])


def test_inputs_called_like_our_own_parameters_are_inputs(program: Program) -> None:
    for name in ("name", "self", "args"):
        with pytest.raises(CallError, match=f"blend: has no input '{name}'; known: picks, x, y"):
            program.run_method("blend", **{name: X})
        with pytest.raises(CallError, match=f"blend: has no input '{name}'; known: picks, x, y"):
            program["blend"](**{name: X})


def test_a_program_is_a_mapping_of_its_methods(program: Program) -> None:
    names = ("blend", "matmul", "window", "add", "scaled", "get_max_rows", "scale", "title")
    assert program.method_names == names
    assert tuple(program) == names
    assert len(program) == 8
    assert "matmul" in program
    assert "matmull" not in program
    assert 3 not in program
    assert program["matmul"].name == "matmul"


def test_constants_are_read_and_are_methods(program: Program) -> None:
    assert program.constants == {"get_max_rows": 16, "scale": 0.25, "title": "a toy"}
    assert {name: program[name]()[0] for name in program.constants} == program.constants
    with pytest.raises(CallError, match="get_max_rows: takes 0 inputs, got 1"):
        program.run_method("get_max_rows", X)


SIGNATURES = [
    "blend(x: float32[2, three=3], y: float32[2, three=3], picks: int64[4])"
    " -> (mixed: float32[2, 3], picked: float32[2, 4])",
    "matmul(a: float32[m=1..8, 4], b: float32[4, n=2..8]) -> (product: float32[m, n])",
    "window(x: float32[w=4..16:4, 2], y: float32[w=4..16:4, 2]) -> (joined: float32[w, 4])",
    "add(amount: float32[2]) -> (total: float32[2], calls: float32[1])",
    "scaled(factor: float32[2]) -> (product: float32[2], calls: float32[1])",
    "get_max_rows() -> (out_0: int)",
    "scale() -> (out_0: float)",
    "title() -> (out_0: str)",
]


def test_signatures_read_like_a_function_s(program: Program, toy: Path) -> None:
    assert [str(program.signature(name)) for name in program] == SIGNATURES
    assert [repr(program[name]) for name in program] == SIGNATURES
    assert repr(program) == "\n  ".join([f"{toy}:", *SIGNATURES])


def test_a_method_that_was_unloaded_is_loaded_again_by_its_next_call(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, loaded = load(foreign), []
    stock = program._engine.method
    monkeypatch.setattr(
        program._engine,
        "method",
        lambda name, *given: loaded.append(name) or stock(name, *given),
    )
    x = torch.randn(2, 2)
    delegated = program["delegated"]
    program.unload("products")  # which is not loaded
    for _ in range(2):
        assert torch.equal(delegated(x)[0], x + x)
    program.unload("delegated")
    assert loaded == ["delegated"]
    for _ in range(2):
        assert torch.equal(delegated(x)[0], x + x)
    assert loaded == ["delegated"] * 2
    with pytest.raises(CallError, match="no method 'product'; did you mean 'products'"):
        program.unload("product")


def test_an_unknown_method_is_answered_with_the_nearest(program: Program, toy: Path) -> None:
    for ask in (program.run_method, program.signature, program.__getitem__):
        with pytest.raises(CallError) as caught:
            ask("matmull")
        assert str(caught.value) == f"{toy}: no method 'matmull'; did you mean 'matmul'?"
    with pytest.raises(CallError, match="no method 'zzz'; known: add, blend, get_max_rows, "):
        program.run_method("zzz")


def test_two_loads_of_one_file_share_no_state(toy: Path) -> None:
    one, other = load(toy), load(toy)
    one.run_method("add", torch.ones(2))
    assert other.run_method("scaled", torch.ones(2)).product.tolist() == [7.0, -1.0]


def test_a_program_is_found_again_from_another_folder(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.parent)
    program = load(toy.name)
    monkeypatch.chdir(tmp_path)
    program.reset()
    assert program.run_method("add", torch.ones(2)).total.tolist() == [8.0, 0.0]
