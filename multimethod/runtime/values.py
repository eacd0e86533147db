"""Inputs for a method written as text, for the command line: `name=value`.

hidden=hidden.npy      an array saved by numpy
w=weights.safetensors[layer.weight]
tokens=random          test values of the right shape and dtype
start=3, x=[[1, 2]]    a literal
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from mmpack.multimethod.errors import CallError, nearest
from mmpack.multimethod.samples import fill, middle_sizes, random_tensor
from mmpack.multimethod.signature import Signature, ValueSpec

KINDS = "a .npy file, file.safetensors[key], random, or a literal such as 3 or [[1, 2]]"
"""What a value may be."""

LONGEST_SHOWN = 120
"""Characters of a value that an error shows."""

_NPY = b"\x93NUMPY"
_SAFETENSORS = re.compile(r"(?P<path>.+\.safetensors)\[(?P<key>.+)\]")


def read_inputs(
    signature: Signature,
    given: Sequence[str],
    sizes: Mapping[str, int],
    ranges: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """Values for a method's inputs from `name=value` texts.

    sizes: dim name -> size for `random`; dims that are not in it take the size that other inputs
    gave them, or a middle one. ranges: as for `random` integers. Raises CallError for what cannot
    be read and for a size that nothing takes; whether values fit is for the method to say.
    """
    texts: dict[str, str] = {}
    names = [value.name for value in signature.inputs]
    for text in given:
        name, equals, value = text.partition("=")
        if not names:
            raise CallError(f"{text!r}: {signature.method} takes no input")
        if not equals:
            raise CallError(f"{text!r}: expected name=value, with a name of {', '.join(names)}")
        if name not in names:
            raise CallError(f"{signature.method} has no input {name!r}{nearest(name, names)}")
        if name in texts:
            raise CallError(f"{signature.method}: input {name!r} was given twice")
        texts[name] = value
    for dim in sizes.keys() - signature.dims.keys():
        raise CallError(f"{signature.method} has no dim {dim!r}{nearest(dim, signature.dims)}")
    values: dict[str, Any] = {
        spec.name: _read(spec, texts[spec.name])
        for spec in signature.inputs
        if spec.name in texts and texts[spec.name] != "random"
    }
    taken = _taken(signature, values)
    _require_used(signature, texts, sizes, taken)
    chosen = {**middle_sizes(signature.dims), **taken, **sizes}
    generator = torch.Generator().manual_seed(0)
    for spec in signature.inputs:
        if texts.get(spec.name) == "random":
            if spec.shape is None:
                raise CallError(f"input {spec.name!r} is a Python {spec.dtype}; give it a literal")
            shape = fill(spec.shape, chosen)
            values[spec.name] = random_tensor(spec.dtype, shape, ranges.get(spec.name), generator)
    return values


def _require_used(
    signature: Signature,
    texts: Mapping[str, str],
    sizes: Mapping[str, int],
    taken: Mapping[str, int],
) -> None:
    """Every size that was asked for is that of an input to be made, or of one that was given."""
    made = {
        size
        for spec in signature.inputs
        if texts.get(spec.name) == "random"
        for size in spec.shape or ()
    }
    for dim, size in sizes.items():
        if dim in taken and taken[dim] != size:
            raise CallError(
                f"{signature.method}: dim {dim!r} is to be {size}, and an input that was given "
                f"has {taken[dim]}\n  {signature}"
            )
        if dim not in made and dim not in taken:
            raise CallError(
                f"{signature.method}: dim {dim!r} is to be {size}, and no input that was given or "
                f"is random has it\n  {signature}"
            )


def _read(spec: ValueSpec, text: str) -> Any:
    shown = repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…")

    def fail(message: str, hint: str = "") -> CallError:
        return CallError(f"input {spec.name!r}: {message}; expected {KINDS}{hint}")

    try:
        if match := _SAFETENSORS.fullmatch(text):
            return _from_safetensors(match["path"], match["key"])
        if text.endswith(".npy"):
            return _from_npy(Path(text))
    except CallError:
        raise
    except OSError as error:
        raise fail(f"{shown} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise fail(f"{shown} cannot be read: {error}") from error
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if text.endswith(".safetensors"):
            raise fail(f"{shown} does not say which tensor, as in {text}[key]") from error
        close = difflib.get_close_matches(text, ["random"])
        hint = "; did you mean 'random'?" if close else ""
        raise fail(f"{shown} is no value", hint) from error
    if spec.shape is None:
        return literal
    try:
        return _literal(literal, getattr(torch, spec.dtype))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise fail(f"{shown} is no tensor of {spec.dtype}: {reason}") from error


def _from_safetensors(path: str, key: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys = file.keys()
        if key not in keys:
            raise CallError(f"{path} has no {key!r}{nearest(key, keys)}")
        tensor: torch.Tensor = file.get_tensor(key)
        return tensor


def _from_npy(path: Path) -> torch.Tensor:
    """An array saved by numpy. What numpy says of other files is about Python's pickle."""
    with path.open("rb") as file:
        magic = file.read(len(_NPY))
    if magic != _NPY:
        found = f"begins with {magic!r}" if magic else "is empty"
        raise ValueError(f"it {found}; an array that numpy saved begins with {_NPY!r}")
    try:
        array = numpy.load(path, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError("it holds Python objects, expected numbers") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"it holds {array.dtype}, expected numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _literal(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a dtype; ValueError for numbers that torch would cut down to fit it."""
    made = torch.tensor(value, dtype=dtype)
    if not dtype.is_floating_point:
        written = torch.tensor(value)
        if not torch.equal(written, made.to(written.dtype)):
            raise ValueError("not all of it is")
    return made


def _taken(signature: Signature, values: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of dims as the tensors that were read have them."""
    taken = {}
    for spec in signature.inputs:
        tensor = values.get(spec.name)
        if isinstance(tensor, torch.Tensor) and len(spec.shape or ()) == tensor.dim():
            for size, axis in zip(tensor.shape, spec.shape or (), strict=True):
                if isinstance(axis, str):
                    taken[axis] = size
    return taken
