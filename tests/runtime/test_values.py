"""Inputs written as text: files, random values, literals; and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmpack.multimethod import CallError, Dim, Signature, ValueSpec
from mmpack.multimethod.runtime.values import read_inputs

SIGNATURE = Signature(
    "m",
    (
        ValueSpec("x", "float32", (2, "n")),
        ValueSpec("ids", "int64", ("n",)),
        ValueSpec("on", "bool", (2,)),
        ValueSpec("scale", "float", None),
    ),
    (),
    {"n": Dim("n", 2, 8, 2), "k": Dim("k", 3, 3)},
)


def read(*texts: str, **sizes: int) -> dict[str, Any]:
    return read_inputs(SIGNATURE, texts, sizes, {"ids": (5, 6)})


def test_a_npy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x=1.npy"
    np.save(path, np.arange(4, dtype=np.float32).reshape(2, 2))
    assert torch.equal(read(f"x={path}")["x"], torch.arange(4.0).reshape(2, 2))


def test_one_tensor_of_a_safetensors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a.b": torch.ones(2, 2), "zzzz": torch.zeros(1)}, path)
    assert torch.equal(read(f"x={path}[a.b]")["x"], torch.ones(2, 2))
    with pytest.raises(CallError) as raised:
        read(f"x={path}[a.d]")
    assert str(raised.value) == f"{path} has no 'a.d'; did you mean 'a.b'?"


def test_literals_take_the_input_s_dtype() -> None:
    values = read("x=[[1, 2], [3, 4.5]]", "ids=[1, 2]", "on=[True, False]", "scale=0.5")
    assert torch.equal(values["x"], torch.tensor([[1.0, 2.0], [3.0, 4.5]]))
    assert values["ids"].dtype == torch.int64 and values["ids"].tolist() == [1, 2]
    assert values["on"].tolist() == [True, False]
    assert values["scale"] == 0.5
    assert read("ids=[1.0, 2.0]")["ids"].tolist() == [1, 2]


def test_random_values_are_of_the_right_shape_and_range_and_the_same_every_time() -> None:
    values = read("x=random", "ids=random", "on=random", n=6)
    assert values["x"].shape == (2, 6) and values["x"].dtype == torch.float32
    assert values["ids"].shape == (6,) and set(values["ids"].tolist()) == {5, 6}
    assert values["on"].dtype == torch.bool
    again = read("x=random", "ids=random", "on=random", n=6)
    assert all(torch.equal(values[name], again[name]) for name in values)


def test_random_values_follow_the_sizes_of_those_that_were_read() -> None:
    assert read("x=random", "ids=[5, 5, 6, 6]")["x"].shape == (2, 4)
    assert read("x=random")["x"].shape == (2, 4)  # a middle one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "'x': expected name=value, with a name of x, ids, on, scale"),
        ("y=1", "m has no input 'y'; known: ids, on, scale, x"),
        ("idx=1", "m has no input 'idx'; did you mean 'ids'?"),
        ("scale=random", "input 'scale' is a Python float; give it a literal"),
        ("x=rand", "input 'x': 'rand' cannot be read (malformed node or string"),
        ("x=[[1], [2, 3]]", "input 'x': '[[1], [2, 3]]' cannot be read (expected sequence of"),
        ("x=missing.npy", "input 'x': 'missing.npy' cannot be read ([Errno 2] No such file"),
        ("x=missing.safetensors[a]", "input 'x': 'missing.safetensors[a]' cannot be read ("),
        ("ids=[1.5]", "input 'ids': '[1.5]' cannot be read (not all of it is int64); expected"),
        ("on=[2]", "input 'on': '[2]' cannot be read (not all of it is bool); expected"),
        ("ids='a'", """input 'ids': "'a'" cannot be read ("""),
    ],
)
def test_what_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(CallError) as raised:
        read(text)
    assert str(raised.value).startswith(message)


def test_an_input_given_twice_and_an_unknown_dim_are_refused() -> None:
    with pytest.raises(CallError, match="m: input 'x' was given twice"):
        read("x=random", "x=random")
    with pytest.raises(CallError, match="m has no dim 'z'; known: k, n"):
        read("x=random", z=3)
