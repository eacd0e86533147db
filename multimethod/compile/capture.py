"""Shapes taken from life: run the whole model once and note what each submodule is given.

So nobody has to write down the shapes of a module deep inside a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from attrs import frozen
from torch import nn

from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.listen import listen
from mmpack.multimethod.compile.model import model_error, resolve
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.memory import bytes_of, too_much
from mmpack.multimethod.samples import fill, random_tensor
from mmpack.multimethod.signature import ValueSpec
from mmpack.multimethod.spec import SpecFile

Point = tuple[nn.Module, str]
"""A module and the name of the Python method of it that is called."""


@frozen
class Captured:
    """The inputs of one call, and the range of values seen in the integer ones."""

    inputs: tuple[ValueSpec, ...]
    ranges: Mapping[str, tuple[int, int]]


def capture(
    spec_file: SpecFile, model: nn.Module, points: Mapping[Point, str]
) -> dict[Point, Captured]:
    """Run the model on the spec's sample and return what each point was called with, first call.

    points: each with a method of the spec that is made from it, for messages.
    Buffers that the run changes are put back. Points that the run does not reach are left out.
    """
    taken: dict[Point, Captured] = {}
    with ExitStack() as undo, torch.no_grad(), kept_buffers(model):
        for point, method in points.items():
            undo.callback(_listen(spec_file, method, point, taken))
        args, kwargs = sample_inputs(spec_file)
        with users_code(spec_file, ("sample",), "running the model on the sample"):
            model(*args, **kwargs)
    return taken


def sample_inputs(spec_file: SpecFile) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The spec's sample as positional and keyword arguments of the model."""
    sample = spec_file.spec.sample
    if sample is None:
        raise model_error(spec_file, (), "captured inputs need a `sample` to run the model on")
    if isinstance(sample, str):
        factory = resolve(spec_file, sample, ("sample",))
        with users_code(spec_file, ("sample",), f"calling {sample}"):
            made = factory()
        return as_arguments(made)
    generator = torch.Generator().manual_seed(0)
    dims = spec_file.spec.dims
    sizes = {name: dim.max for name, dim in dims.items()}
    values = [ValueSpec(name, given.dtype, given.shape) for name, given in sample.items()]
    if told := too_much(bytes_of(values, sizes)):
        message = f"with its dims at their maximum it takes {told}"
        raise model_error(spec_file, ("sample",), message)
    return (), {
        name: random_tensor(given.dtype, fill(given.shape, sizes), given.range, generator)
        for name, given in sample.items()
    }


def as_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a user's callable gives as one sample, as positional and keyword arguments: a mapping
    is by name, a tuple or list by position, anything else the only one."""
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)), {}


def _listen(
    spec_file: SpecFile, method: str, point: Point, taken: dict[Point, Captured]
) -> Callable[[], None]:
    module, call = point

    def note(bound: inspect.BoundArguments) -> None:
        if point in taken:
            return
        inputs, ranges = [], {}
        for name, value in bound.arguments.items():
            if value is None and bound.signature.parameters[name].default is None:
                continue
            if not isinstance(value, torch.Tensor):
                raise model_error(
                    spec_file,
                    ("methods", method, "module"),
                    f"{type(module).__name__}.{call} is given a {type(value).__name__} as "
                    f"{name!r} in the sample run; captured inputs must be tensors: write a "
                    "wrapper that takes tensors only",
                )
            dtype = str(value.dtype).removeprefix("torch.")
            inputs.append(ValueSpec(name, dtype, tuple(value.shape)))
            if not value.dtype.is_floating_point and value.numel():
                ranges[name] = (int(value.min()), int(value.max()))
        taken[point] = Captured(tuple(inputs), ranges)

    return listen(module, call, note)
