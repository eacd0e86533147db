"""Signatures print like a function's; dims admit what torch.export's dims admit."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpack.multimethod import Dim, Signature, ValueSpec, signature
from mmpack.multimethod.plain import PLAIN


def test_the_example_in_the_docs_is_true() -> None:
    failed, tried = doctest.testmod(signature)
    assert tried > 0 and failed == 0


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (Dim("n", 1, 8), "n=1..8"),
        (Dim("n", 4, 16, 4), "n=4..16:4"),
        (Dim("n", 8, 8), "n=8"),
        (Dim("n", 8, 8, 8), "n=8"),
    ],
)
def test_a_dim_prints_its_range(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_a_signature_prints_scalars_expressions_and_nothing() -> None:
    kv = Dim("kv", 1, 64)
    given = Signature(
        "cat",
        (ValueSpec("k", "float16", (1, "kv")), ValueSpec("start", "int", None)),
        (ValueSpec("out", "float16", (1, "kv + 32")), ValueSpec("s", "float32", ())),
        {"kv": kv},
    )
    assert str(given) == (
        "cat(k: float16[1, kv=1..64], start: int) -> (out: float16[1, kv + 32], s: float32[])"
    )
    assert str(Signature("none", (), ())) == "none() -> ()"


def test_its_dynamic_dims_are_those_that_inputs_name_and_that_vary() -> None:
    dims = {d.name: d for d in (Dim("a", 1, 4), Dim("b", 2, 2), Dim("c", 1, 9), Dim("z", 1, 3))}
    x, y = ValueSpec("x", "bool", ("c", "b")), ValueSpec("y", "bool", ("a", "c", 3))
    assert Signature("m", (x, y), (), dims).dynamic == ("c", "a")


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    step = draw(st.integers(1, 9))
    low = draw(st.integers(1, 20)) * step
    return Dim("n", low, low + draw(st.integers(0, 20)) * step, step)


@given(dims(), st.integers(0, 400))
def test_a_dim_admits_the_multiples_of_its_step_in_its_range(dim: Dim, size: int) -> None:
    assert dim.admits(size) == (size in range(dim.min, dim.max + 1, dim.step))


@given(dims())
def test_the_sizes_that_are_tried_are_ends_and_a_middle_and_all_admitted(dim: Dim) -> None:
    sizes = dim.samples()
    assert sizes[0] == dim.min and sizes[-1] == dim.max
    assert list(sizes) == sorted(set(sizes))
    assert all(dim.admits(size) for size in sizes)
    if dim.max - dim.min >= 2 * dim.step:
        assert len(sizes) == 3


@given(dims())
def test_it_survives_the_way_to_plain_data_and_back(dim: Dim) -> None:
    given = Signature(
        "m",
        (ValueSpec("x", "float32", (1, "n")), ValueSpec("k", "int", None)),
        (ValueSpec("y", "float32", ("2*n", 3)),),
        {"n": dim},
    )
    assert PLAIN.structure(PLAIN.unstructure(given), Signature) == given
