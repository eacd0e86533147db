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


EXPECTED = "expected a .npy file, file.safetensors[key], random, or a literal such as 3 or [[1, 2]]"


def read(*texts: str, **sizes: int) -> dict[str, Any]:
    return read_inputs(SIGNATURE, texts, sizes, {"ids": (5, 6)})


def test_a_npy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x=1.npy"
    np.save(path, np.arange(4, dtype=np.float32).reshape(2, 2))
    assert torch.equal(read(f"x={path}")["x"], torch.arange(4.0).reshape(2, 2))


@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_a_npy_file_of_any_byte_order_is_read(tmp_path: Path, order: str) -> None:
    np.save(tmp_path / "x.npy", np.arange(4, dtype=order).reshape(2, 2).T)
    expected = torch.arange(4.0).reshape(2, 2).T
    assert torch.equal(read(f"x={tmp_path / 'x.npy'}")["x"], expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"1 2\n3 4\n",
            "it begins with b'1 2\\n3 '; an array that numpy saved begins with b'\\x93NUMPY'",
        ),
        (b"", "it is empty; an array that numpy saved begins with b'\\x93NUMPY'"),
        (np.array([{}]), "it holds Python objects, expected numbers"),
        (np.array(["a"]), "it holds <U1, expected numbers"),
        (np.array([1j]), "it holds complex128, expected numbers"),
    ],
)
def test_what_is_no_array_of_numbers_is_said_in_words_of_ours(
    tmp_path: Path, data: Any, message: str
) -> None:
    path = tmp_path / "x.npy"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        np.save(path, data, allow_pickle=True)
    with pytest.raises(CallError) as raised:
        read(f"x={path}")
    assert str(raised.value) == f"input 'x': '{path}' cannot be read: {message}; {EXPECTED}"


def test_a_npy_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 2)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CallError, match=r"x\.npy' cannot be read: "):
        read(f"x={path}")


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
        ("x=rand", f"input 'x': 'rand' is no value; {EXPECTED}; did you mean 'random'?"),
        ("x=hidden", f"input 'x': 'hidden' is no value; {EXPECTED}"),
        ("x=", f"input 'x': '' is no value; {EXPECTED}"),
        (f"x={'[' * 5000}", f"input 'x': '{'[' * 120}…' is no value; {EXPECTED}"),
        ("x=[1, 2", f"input 'x': '[1, 2' is no value; {EXPECTED}"),
        (
            "x=[[1], [2, 3]]",
            "input 'x': '[[1], [2, 3]]' is no tensor of float32: expected seq",
        ),
        ("x=missing.npy", "input 'x': 'missing.npy' cannot be read: No such file or directory; ex"),
        ("x=missing.safetensors[a]", "input 'x': 'missing.safetensors[a]' cannot be read: No such"),
        ("x=a.safetensors", "input 'x': 'a.safetensors' does not say which tensor, as in a.safe"),
        ("ids=[1.5]", f"input 'ids': '[1.5]' is no tensor of int64: not all of it is; {EXPECTED}"),
        ("on=[2]", f"input 'on': '[2]' is no tensor of bool: not all of it is; {EXPECTED}"),
        ("ids=[99999999999999999999]", "input 'ids': '[99999999999999999999]' is no tensor of int"),
        ("ids='a'", """input 'ids': "'a'" is no tensor of int64: """),
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


def test_a_size_that_no_input_takes_is_refused() -> None:
    assert read("x=[[1, 2], [3, 4]]", n=2)["x"].shape == (2, 2)  # it is so
    with pytest.raises(CallError, match="m: dim 'n' is to be 4, and an input that was given has 2"):
        read("x=[[1, 2], [3, 4]]", "ids=random", n=4)
    with pytest.raises(CallError, match="m: dim 'k' is to be 3, and no input that was given or is"):
        read("x=random", k=3)
    with pytest.raises(CallError, match="m: dim 'n' is to be 4, and no input that was given or is"):
        read("on=random", n=4)
