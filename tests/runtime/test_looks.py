"""What an accepted call looked like is known again, and nothing else is: in Python, as the stock
engine remembers it, and in the extension."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mmpack.multimethod import CallError, MmpackError, load
from mmpack.multimethod.runtime import engines
from mmpack.multimethod.runtime.looks import Looks

MOST = 3


@pytest.fixture
def looks(remembering: Callable[[int], Looks]) -> Looks:
    return remembering(MOST)


def ones(*sizes: int, **how: Any) -> Tensor:
    return torch.ones(*sizes, **how)


class Marked(Tensor):
    """A subclass that changes nothing."""


def fake() -> Tensor:
    with FakeTensorMode():
        return ones(2, 3)


def inference() -> Tensor:
    with torch.inference_mode():
        return ones(2, 3)


def nested() -> Tensor:
    return torch._nested_tensor_from_tensor_list([ones(3), ones(3)])


ODD: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a number": lambda: 1.0,
    "an array": lambda: np.ones((2, 3), np.float32),
    "a list": lambda: [[1.0, 1.0, 1.0]] * 2,
    "the class of tensors": lambda: Tensor,
    "another dtype": lambda: ones(2, 3, dtype=torch.int32),
    "a dtype as large": lambda: ones(2, 3, dtype=torch.float64),
    "half": lambda: ones(2, 3, dtype=torch.float16),
    "complex": lambda: ones(2, 3, dtype=torch.complex64),
    "as many elements": lambda: ones(3, 2),
    "flat": lambda: ones(6),
    "another axis": lambda: ones(1, 2, 3),
    "a scalar": lambda: torch.tensor(1.0),
    "no elements": lambda: ones(0, 3),
    "transposed": lambda: ones(3, 2).t(),
    "strided": lambda: ones(2, 6)[:, ::2],
    "expanded": lambda: ones(3).expand(2, 3),
    "negated": lambda: torch._neg_view(ones(2, 3)),
    "parameter": lambda: torch.nn.Parameter(ones(2, 3)),
    "subclass": lambda: ones(2, 3).as_subclass(Marked),
    "no values": lambda: ones(2, 3, device="meta"),
    "pretended": fake,
    "sparse": lambda: ones(2, 3).to_sparse(),
    "sparse rows": lambda: ones(2, 3).to_sparse_csr(),
    "of another library": lambda: ones(2, 3).to_mkldnn(),
    "nested": nested,
    "quantized": lambda: torch.quantize_per_tensor(ones(2, 3), 1.0, 0, torch.qint8),
}

PLAIN: dict[str, Callable[[], Tensor]] = {
    "new": lambda: ones(2, 3),
    "in the middle of its storage": lambda: ones(40)[7:13].view(2, 3),
    "wants a gradient": lambda: ones(2, 3).requires_grad_(),
    "has a history": lambda: ones(2, 3).requires_grad_() * 2,
    "made for inference": inference,
    "a row that is the whole": lambda: ones(4, 1, 3)[2:4, 0],
    "buffer": lambda: torch.nn.Buffer(ones(2, 3)),
    "of an array": lambda: torch.from_numpy(np.ones((2, 3), np.float32)),
    "negated twice": lambda: torch._neg_view(torch._neg_view(ones(2, 3))),
}


@pytest.mark.filterwarnings("ignore:.*(nested tensors|CSR|torch.quantize|mkldnn)")
@pytest.mark.parametrize("odd", ODD)
def test_what_looks_otherwise_is_not_known(looks: Looks, odd: str) -> None:
    right = ones(2, 3)
    looks.remember([right, right])
    assert looks.known([right, right])
    other = ODD[odd]()
    assert not looks.known([right, other])
    assert not looks.known((other, right))
    assert not looks.known((other, other))
    assert looks.known((right, right))


@pytest.mark.parametrize("plain", PLAIN)
def test_what_looks_alike_is_known_whatever_it_is(looks: Looks, plain: str) -> None:
    assert not looks.known([PLAIN[plain]()])
    looks.remember([ones(2, 3)])
    assert looks.known([PLAIN[plain]()])


@pytest.mark.parametrize("sizes", [(), (0,), (3, 0, 2), (1,) * 16])
def test_any_sizes_are_remembered(looks: Looks, sizes: tuple[int, ...]) -> None:
    looks.remember([torch.zeros(sizes)])
    assert looks.known([torch.zeros(sizes)])
    assert not looks.known([torch.zeros((*sizes, 1))])


def test_inputs_are_told_apart_by_how_many_they_are_and_in_which_order(looks: Looks) -> None:
    a, b = ones(2, 3), ones(2, dtype=torch.int64)
    looks.remember([a, b])
    looks.remember([])
    assert looks.known([a, b]) and looks.known(())
    for others in ([b, a], [a], [b], [a, b, b], [a, a], [a, b, a, b]):
        assert not looks.known(others)


def test_looks_are_not_mixed_from_those_of_several_calls(looks: Looks) -> None:
    looks.remember([ones(2), ones(3)])
    looks.remember([ones(4), ones(5)])
    assert not looks.known([ones(2), ones(5)])
    assert not looks.known([ones(4), ones(3)])


def test_only_so_many_calls_are_remembered(looks: Looks) -> None:
    for size in (1, 2, 2, 1, 3, 4, 5):
        looks.remember([ones(size)])
    assert [looks.known([ones(size)]) for size in range(1, 6)] == [True] * 3 + [False] * 2


def test_a_tensor_is_looked_at_anew_in_every_call(looks: Looks) -> None:
    x = ones(2, 3)
    looks.remember([x])
    changes: list[Callable[[], object]] = [
        lambda: x.resize_(2, 4),
        lambda: x.resize_(3, 2).t_(),
        lambda: x.unsqueeze_(0),
        lambda: x.set_(ones(2, 6), 0, (2, 3), (6, 1)),  # type: ignore[call-overload]
        lambda: setattr(x, "data", ones(2, 3, dtype=torch.float64)),
    ]
    for change in changes:
        x = ones(2, 3)
        assert looks.known([x])
        change()
        assert not looks.known([x])
    x = ones(2, 3)
    x.resize_(2, 4).resize_(2, 3)
    assert looks.known([x])


def test_a_call_of_other_sizes_is_right_or_refused_however_many_threads_make_them(
    toy: Path,
) -> None:
    """Right and wrong ones in all threads, so that each looks while others remember."""
    program = load(toy)
    threads, calls = 8, 400
    barrier = threading.Barrier(threads)

    def call(thread: int) -> None:
        chosen = random.Random(thread)
        barrier.wait()
        for _ in range(calls):
            m, k, n = chosen.randint(0, 9), chosen.choice([4, 4, 4, 3]), chosen.randint(1, 9)
            a, b = torch.full((m, k), float(thread)), torch.ones(k, n)
            try:
                product = program.run_method("matmul", a, b).product
            except CallError:
                assert not (1 <= m <= 8 and k == 4 and 2 <= n <= 8)
            else:
                assert 1 <= m <= 8 and k == 4 and 2 <= n <= 8
                assert torch.equal(product, a @ b)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(call, thread) for thread in range(threads)]:
            done.result()


@pytest.mark.parametrize("most", [0, 1])
def test_calls_beyond_what_is_remembered_are_still_right(
    toy: Path, remembering: Callable[[int], Looks], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(engines._automatic(), "looks", lambda self: remembering(most))
    method = load(toy)["matmul"]
    for m in (1, 2, 8, 1):
        a, b = torch.randn(m, 4), torch.randn(4, 2)
        for _ in range(2):
            torch.testing.assert_close(method(a, b).product, a @ b)
            assert method._known((a, b)) is (most == 1 and m == 1)
            with pytest.raises(CallError, match="axis 1: expected 4, got 5"):
                method(torch.randn(m, 5), b)


@pytest.mark.filterwarnings("ignore:.*(nested tensors|CSR|torch.quantize|mkldnn)")
@pytest.mark.parametrize("odd", ODD)
def test_a_call_with_what_is_odd_is_right_or_refused_after_a_right_one(toy: Path, odd: str) -> None:
    method = load(toy)["blend"]
    x, picks = ones(2, 3), torch.tensor([2, 0, 0, 1])
    first = method(x, x, picks)
    given = ODD[odd]()
    try:
        result = method(x, given, picks)
    except MmpackError as error:
        assert type(error) is CallError
        assert re.match("blend: input 'y': .*expected", str(error))
    else:
        dense = given.detach().as_subclass(Tensor)
        assert dense.shape == (2, 3) and dense.dtype is torch.float32
        assert torch.equal(result.mixed, x - 2 * dense)
    assert all(map(torch.equal, method(x, x, picks), first))
