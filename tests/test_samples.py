"""Test values: the right shapes and ranges, the same every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpack.multimethod import Dim, ValueSpec
from mmpack.multimethod.samples import middle_sizes, random_inputs, random_tensor
from mmpack.multimethod.signature import DTYPES


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_signatures_can_be_made(dtype: str) -> None:
    made = random_tensor(dtype, (3, 4), None, seeded())
    assert made.shape == (3, 4)
    assert made.dtype is getattr(torch, dtype)
    assert made.element_size() == DTYPES[dtype]
    assert torch.equal(made, random_tensor(dtype, (3, 4), None, seeded()))


def test_a_range_is_inclusive_at_both_ends() -> None:
    made = random_tensor("int64", (500,), (-1, 1), seeded())
    assert set(made.tolist()) == {-1, 0, 1}
    assert set(random_tensor("bool", (100,), None, seeded()).tolist()) == {False, True}


def test_inputs_take_their_dims_sizes_and_ranges() -> None:
    inputs = [ValueSpec("x", "float32", (2, "n")), ValueSpec("i", "int64", ("n", "m"))]
    x, i = random_inputs(inputs, {"n": 3, "m": 5}, {"i": (7, 7)}, seeded())
    assert x.shape == (2, 3)
    assert torch.equal(i, torch.full((3, 5), 7))


@st.composite
def dims(draw: st.DrawFn) -> dict[str, Dim]:
    made = {}
    for name in draw(st.sets(st.sampled_from("abcd"), min_size=1)):
        step = draw(st.integers(1, 4))
        low = draw(st.integers(1, 5)) * step
        made[name] = Dim(name, low, low + draw(st.integers(0, 30)) * step, step)
    return made


@given(dims())
def test_middle_sizes_are_admitted(given_dims: dict[str, Dim]) -> None:
    sizes = middle_sizes(given_dims)
    assert sizes.keys() == given_dims.keys()
    assert all(given_dims[name].admits(size) for name, size in sizes.items())


def test_middle_sizes_differ_where_they_can() -> None:
    sizes = middle_sizes({name: Dim(name, 1, 64) for name in "abcd"})
    assert len(set(sizes.values())) == 4
    assert middle_sizes({name: Dim(name, 2, 2) for name in "ab"}) == {"a": 2, "b": 2}


def test_without_a_range_integers_are_drawn_from_all_that_the_dtype_holds() -> None:
    bytes_ = random_tensor("uint8", (5000,), None, seeded())
    assert (int(bytes_.min()), int(bytes_.max())) == (0, 255)
    assert int(random_tensor("int64", (100,), None, seeded()).abs().max()) > 2**60
