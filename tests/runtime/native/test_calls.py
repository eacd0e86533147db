"""The extension's functions, called otherwise than the engine does."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import load
from mmpack.multimethod.runtime.native.build import build, extension

X, PICKS = torch.ones(2, 3), torch.tensor([2, 0, 0, 1])


@pytest.fixture
def run(toy: Path) -> Callable[..., list[Any]]:
    return load(toy)["blend"].prepare()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected inputs, and perhaps out"),
        (([X], None, None), "expected inputs, and perhaps out"),
        ((3,), "inputs: expected a tuple or list, got int"),
        ((iter([X]),), "inputs: expected a tuple or list, got list_iterator"),
        (([X, X, PICKS], X), "out: expected a tuple or list, got Tensor"),
    ],
)
def test_wrong_arguments_are_python_s_errors(
    run: Callable[..., Any], args: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        run(*args)
    with pytest.raises(TypeError):
        run([X], out=None)
    assert torch.equal(run([X, X, PICKS])[0], -X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([X, X], r"set_inputs\(\) for method 'blend' failed with error 0x12"),
        ([X, X, PICKS, X], r"set_inputs\(\) for method 'blend' failed with error 0x12"),
        ([X, X, 2**70], "an integer does not fit 64 bits"),
        ([X, X, "picks"], "Unsupported python type str"),
        ([X, torch.ones(300, 3), PICKS], "error 0x10"),
    ],
)
def test_a_failure_is_a_runtime_error_and_what_comes_next_is_right(
    run: Callable[..., Any], inputs: list[Any], message: str
) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError, match=message):
            run(inputs)
        assert torch.equal(run([X, X, PICKS])[0], -X)


def test_looks_want_a_tuple_or_list() -> None:
    known, remember = extension(build()).looks(most=1)
    for function in (known, remember):
        for wrong in ((), (3,), ([X], [X])):
            with pytest.raises(TypeError):
                function(*wrong)


def test_nothing_is_kept_of_a_call(run: Callable[..., Any]) -> None:
    """Neither inputs, tensors for outputs or results, of calls that went well or wrong."""
    inputs = [X.clone(), X.clone(), PICKS.clone()]
    out = [torch.empty(2, 3), None]
    run(inputs, out)
    kept = [sys.getrefcount(value) for value in (*inputs, out[0], None)]
    results = run(inputs, out)
    assert results[0] is out[0]
    made = weakref.ref(results[1])
    with pytest.raises(RuntimeError):
        run([*inputs, X], out)
    del results
    assert made() is None
    assert [sys.getrefcount(value) for value in (*inputs, out[0])] == kept[:-1]


def test_a_function_keeps_its_method(toy: Path) -> None:
    program = load(toy)
    run = program["blend"].prepare()
    del program
    gc.collect()
    with pytest.raises(RuntimeError, match="method 'blend' has been unloaded"):
        run([X, X, PICKS])


def test_many_inputs_and_outputs_take_memory_of_their_own(tmp_path: Path) -> None:
    """More than there is room for where those of most calls are."""
    from executorch.exir import to_edge

    count = 200

    class Many(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(one + 1 for one in given)

    inputs = tuple(torch.full((2,), float(i)) for i in range(count))
    path = tmp_path / "many.pte"
    path.write_bytes(to_edge(torch.export.export(Many(), inputs)).to_executorch().buffer)
    program = load(path)
    for _ in range(3):
        results = program["forward"](*inputs)
        assert [result.tolist() for result in results] == [[i + 1.0] * 2 for i in range(count)]
