"""Wrong calls are refused in words, right ones are not; the oracle is a checker written anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from mmpack.multimethod import CallError, Dim, Signature, ValueSpec
from mmpack.multimethod.runtime.arguments import Arguments
from mmpack.multimethod.runtime.looks import Looks

ATTENTION = Signature(
    "attention",
    (
        ValueSpec("q", "float32", (1, "chunk", 4)),
        ValueSpec("k", "float32", (1, "kv", 2)),
        ValueSpec("v", "float32", (1, "kv", 2)),
        ValueSpec("start", "int64", ("heads",)),
    ),
    (ValueSpec("out", "float32", (1, "chunk", 4)),),
    {
        "chunk": Dim("chunk", 2, 2),
        "kv": Dim("kv", 4, 16, 4),
        "heads": Dim("heads", 1, 3),
    },
)
SHOWN = (
    "attention(q: float32[1, chunk=2, 4], k: float32[1, kv=4..16:4, 2], "
    "v: float32[1, kv=4..16:4, 2], start: int64[heads=1..3]) -> (out: float32[1, chunk, 4])"
)


def right(kv: int = 8) -> dict[str, Any]:
    return {
        "q": torch.zeros(1, 2, 4),
        "k": torch.zeros(1, kv, 2),
        "v": torch.zeros(1, kv, 2),
        "start": torch.zeros(2, dtype=torch.int64),
    }


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(1, 2, 4)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "not a tensor": (
        lambda: {"q": np.zeros((1, 2, 4), np.float32)},
        "input 'q': expected a tensor of float32, got ndarray",
    ),
    "none": (lambda: {"start": None}, "input 'start': expected a tensor of int64, got NoneType"),
    "dtype": (
        lambda: {"q": torch.zeros(1, 2, 4, dtype=torch.float64)},
        "input 'q': expected dtype float32, got float64",
    ),
    "dtype of an integer": (
        lambda: {"start": torch.zeros(2, dtype=torch.int32)},
        "input 'start': expected dtype int64, got int32",
    ),
    "rank": (
        lambda: {"q": torch.zeros(2, 4)},
        "input 'q': expected 3 axes, float32[1, chunk=2, 4], got 2: [2, 4]",
    ),
    "rank of a scalar": (
        lambda: {"start": torch.tensor(1)},
        "input 'start': expected 1 axis, int64[heads=1..3], got 0: []",
    ),
    "fixed size": (
        lambda: {"q": torch.zeros(1, 2, 5)},
        "input 'q': axis 2: expected 4, got 5",
    ),
    "first axis": (
        lambda: {"q": torch.zeros(2, 2, 4)},
        "input 'q': axis 0: expected 1, got 2",
    ),
    "fixed dim": (
        lambda: {"q": torch.zeros(1, 3, 4)},
        "input 'q': axis 1 (dim 'chunk'): expected 2, got 3",
    ),
    "dim below its minimum": (
        lambda: {"k": torch.zeros(1, 3, 2)},
        "input 'k': axis 1 (dim 'kv'): expected 4 to 16, got 3",
    ),
    "dim of nothing": (
        lambda: {"start": torch.zeros(0, dtype=torch.int64)},
        "input 'start': axis 0 (dim 'heads'): expected 1 to 3, got 0",
    ),
    "dim above its maximum": (
        lambda: {"k": torch.zeros(1, 20, 2)},
        "input 'k': axis 1 (dim 'kv'): expected 4 to 16, got 20",
    ),
    "dim off its step": (
        lambda: {"k": torch.zeros(1, 6, 2)},
        "input 'k': axis 1 (dim 'kv'): expected a multiple of 4, got 6",
    ),
    "two inputs disagree": (
        lambda: {"v": torch.zeros(1, 12, 2)},
        "input 'v': axis 1 (dim 'kv'): expected 8 as in input 'k', got 12",
    ),
    "on no device": (
        lambda: {"q": torch.zeros(1, 2, 4, device="meta")},
        "input 'q': expected a tensor on the CPU, got one on meta",
    ),
    "sparse": (
        lambda: {"q": torch.zeros(1, 2, 4).to_sparse()},
        "input 'q': expected a dense tensor, got torch.sparse_coo",
    ),
    "of another library": (
        lambda: {"q": torch.zeros(1, 2, 4).to_mkldnn()},
        "input 'q': expected a dense tensor, got torch._mkldnn",
    ),
    "nested": (
        lambda: {"q": torch._nested_tensor_from_tensor_list([torch.zeros(2, 4)])},
        "input 'q': expected a dense tensor, got a nested one",
    ),
    "without values": (lambda: {"q": fake()}, "input 'q': expected a plain tensor, got FakeTensor"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("warm", [False, True], ids=["first", "after a right call"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_named_with_what_was_expected_and_what_came(
    case: str, warm: bool, remembering: Callable[..., Looks]
) -> None:
    make, message = WRONG[case]
    arguments = Arguments(ATTENTION, seen=remembering())
    if warm:  # the shapes are remembered then, and the check takes its short way
        arguments.accept((), right())
    with pytest.raises(CallError) as caught:
        arguments.accept((), {**right(), **make()})
    assert str(caught.value) == f"attention: {message}\n  {SHOWN}"
    assert len(arguments.accept((), right())) == 4


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (0, (), "takes 4 inputs, got 0: missing 'q', 'k', 'v', 'start'"),
        (3, (), "takes 4 inputs, got 3: missing 'start'"),
        (1, ("v",), "takes 4 inputs, got 2: missing 'k', 'start'"),
        (5, (), "takes 4 inputs, got 5"),
        (3, ("strat",), "has no input 'strat'; did you mean 'start'?"),
        (3, ("zzz",), "has no input 'zzz'; known: k, q, start, v"),
        (4, ("q",), "input 'q' was given twice"),
    ],
)
def test_a_wrong_set_of_inputs_is_named(
    args: int, kwargs: tuple[str, ...], message: str, remembering: Callable[..., Looks]
) -> None:
    values = [*right().values(), torch.zeros(1)]
    arguments = Arguments(ATTENTION, seen=remembering())
    with pytest.raises(CallError) as caught:
        arguments.accept(values[:args], dict.fromkeys(kwargs, torch.zeros(1)))
    assert str(caught.value) == f"attention: {message}\n  {SHOWN}"


def test_inputs_come_in_call_order_however_they_were_given(
    remembering: Callable[..., Looks],
) -> None:
    given = right()
    arguments = Arguments(ATTENTION, seen=remembering())
    for accepted in (
        arguments.accept(tuple(given.values()), {}),
        arguments.accept((), dict(reversed(given.items()))),
        arguments.accept((given["q"], given["k"]), {"start": given["start"], "v": given["v"]}),
    ):
        assert [id(value) for value in accepted] == [id(value) for value in given.values()]


SIGNATURE = Signature(
    "m",
    (
        ValueSpec("a", "float32", ("n", "k")),
        ValueSpec("b", "int64", ("k", 2)),
        ValueSpec("c", "float32", ("n",)),
    ),
    (),
    {"n": Dim("n", 1, 6), "k": Dim("k", 2, 6, 2)},
)


def admits(values: Sequence[torch.Tensor]) -> bool:
    """What SIGNATURE says, once more, in other words."""
    a, b, c = values
    if (a.dtype, b.dtype, c.dtype) != (torch.float32, torch.int64, torch.float32):
        return False
    if (a.ndim, b.ndim, c.ndim) != (2, 2, 1):
        return False
    n, k = a.shape
    return n in range(1, 7) and k in (2, 4, 6) and (*b.shape, *c.shape) == (k, 2, n)


SIZES = st.integers(0, 7)
MOSTLY = [torch.float32, torch.float32, torch.float32, torch.int64, torch.float64]


@st.composite
def calls(draw: st.DrawFn) -> list[torch.Tensor]:
    """Three tensors, right ones often enough, with at most one of them changed."""
    n, k = draw(SIZES), draw(st.sampled_from([2, 2, 4, 4, 6, 3]))
    shapes = [[n, k], [k, 2], [n]]
    dtypes = [torch.float32, torch.int64, torch.float32]
    changed = draw(st.sampled_from([None, None, 0, 1, 2]))
    if changed is not None:
        shapes[changed] = draw(st.lists(SIZES, min_size=0, max_size=3))
        dtypes[changed] = draw(st.sampled_from(MOSTLY))
    values = [torch.zeros(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]
    if draw(st.booleans()) and values[0].ndim == 2:
        values[0] = values[0].t().contiguous().t()
    return values


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(several=st.lists(calls(), min_size=1, max_size=12))
def test_what_was_accepted_before_never_lets_a_wrong_call_through(
    remembering: Callable[..., Looks], several: list[list[torch.Tensor]]
) -> None:
    arguments = Arguments(SIGNATURE, seen=remembering())
    for values in [*several, *several]:
        try:
            accepted = arguments.accept(values, {})
        except CallError:
            assert not admits(values)
        else:
            assert admits(values)
            assert all(value.is_contiguous() for value in accepted)
            assert all(map(torch.equal, accepted, values))


def test_remembered_shapes_are_limited(remembering: Callable[..., Looks]) -> None:
    arguments = Arguments(ATTENTION, seen=remembering(2))
    for kv in (4, 8, 12, 16, 12):
        arguments.accept((), right(kv))
    known = [kv for kv in (4, 8, 12, 16) if arguments.known([*right(kv).values()])]
    assert known == [4, 8]


@pytest.mark.parametrize(
    "signature",
    [
        Signature("m", (ValueSpec("x", "float", None), ValueSpec("y", "float32", (2,))), ()),
        Signature("m", (ValueSpec("x", "float32", (2,)), ValueSpec("y", "str", None)), ()),
    ],
    ids=str,
)
def test_a_call_with_a_number_or_text_is_always_examined(
    signature: Signature, remembering: Callable[..., Looks]
) -> None:
    arguments = Arguments(signature, seen=remembering())
    values = {"float": 2, "str": "a", "float32": torch.zeros(2)}
    args = [values[spec.dtype] for spec in signature.inputs]
    for _ in range(2):
        assert len(arguments.accept(args, {})) == 2
        assert not arguments.known(args)


def test_another_layout_is_always_examined(remembering: Callable[..., Looks]) -> None:
    signature = Signature("m", (ValueSpec("x", "float32", (1, 2, 3, 4)),), ())
    arguments = Arguments(signature, (0,), remembering())
    x = torch.randn(1, 2, 3, 4)
    for _ in range(2):
        (accepted,) = arguments.accept((x,), {})
        assert accepted.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(accepted, x)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("int", 2.0, "expected int, got float"),
        ("int", True, "expected int, got bool"),
        ("float", "1", "expected float, got str"),
        ("bool", 1, "expected bool, got int"),
        ("str", 1, "expected str, got int"),
        ("int", torch.tensor(1), "expected int, got Tensor"),
    ],
)
def test_a_wrong_python_scalar_is_named(dtype: str, value: Any, message: str) -> None:
    signature = Signature("m", (ValueSpec("x", dtype, None),), ())
    with pytest.raises(CallError) as caught:
        Arguments(signature).accept((value,), {})
    assert str(caught.value) == f"m: input 'x': {message}\n  m(x: {dtype}) -> ()"


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    signature = Signature("m", (ValueSpec("x", "float", None),), ())
    (value,) = Arguments(signature).accept((2,), {})
    assert type(value) is float and value == 2.0
