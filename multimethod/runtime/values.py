"""Inputs for a method written as text, for the command line: `name=value`.

hidden=hidden.npy      an array saved by numpy
w=weights.safetensors[layer.weight]
tokens=random          test values of the right shape and dtype
start=3, x=[[1, 2]]    a literal
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from mmpack.multimethod.errors import CallError, nearest
from mmpack.multimethod.samples import fill, middle_sizes, random_tensor
from mmpack.multimethod.signature import Signature, ValueSpec

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
    be read; whether it fits is for the method to say.
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
    chosen = {**middle_sizes(signature.dims), **_taken(signature, values), **sizes}
    generator = torch.Generator().manual_seed(0)
    for spec in signature.inputs:
        if texts.get(spec.name) == "random":
            if spec.shape is None:
                raise CallError(f"input {spec.name!r} is a Python {spec.dtype}; give it a literal")
            shape = fill(spec.shape, chosen)
            values[spec.name] = random_tensor(spec.dtype, shape, ranges.get(spec.name), generator)
    return values


def _read(spec: ValueSpec, text: str) -> Any:
    try:
        if match := _SAFETENSORS.fullmatch(text):
            from safetensors import safe_open

            with safe_open(match["path"], framework="pt") as file:
                key, keys = match["key"], file.keys()
                if key not in keys:
                    raise CallError(f"{match['path']} has no {key!r}{nearest(key, keys)}")
                return file.get_tensor(key)
        if text.endswith(".npy"):
            return torch.from_numpy(numpy.load(Path(text), allow_pickle=False))
        literal = ast.literal_eval(text)
        if spec.shape is None:
            return literal
        return _literal(literal, getattr(torch, spec.dtype))
    except CallError:
        raise
    except Exception as error:
        raise CallError(
            f"input {spec.name!r}: {text!r} cannot be read ({error}); expected a .npy file, "
            "file.safetensors[key], random, or a literal such as 3 or [[1, 2]]"
        ) from error


def _literal(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a dtype; ValueError for numbers that torch would cut down to fit it."""
    made = torch.tensor(value, dtype=dtype)
    if not dtype.is_floating_point:
        written = torch.tensor(value)
        if not torch.equal(written, made.to(written.dtype)):
            raise ValueError(f"not all of it is {str(dtype).removeprefix('torch.')}")
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
