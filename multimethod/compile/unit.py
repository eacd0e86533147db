"""A unit: one method to be made, ready to be exported.

`make_units` turns the methods of a spec and a model into units: the submodule found and wrapped,
the inputs named, typed and shaped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn

from mmpack.multimethod.compile.capture import Captured, capture
from mmpack.multimethod.compile.model import (
    forward_names,
    model_error,
    submodule,
    wrapper_class,
)
from mmpack.multimethod.errors import nearest
from mmpack.multimethod.signature import Dim, ValueSpec
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.records import InputSpec, MethodSpec


class Positional(nn.Module):
    """Gives a module, or one of its methods, inputs by the names that the spec uses.

    torch.export sees one positional input per name, in the spec's order, whatever the order and
    kind of the parameters behind it; with `names` None they are passed on as they come.
    """

    def __init__(self, module: nn.Module, call: str, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self.names = names

    def forward(self, *values: torch.Tensor) -> Any:
        function = self.module if self.call == "forward" else getattr(self.module, self.call)
        if self.names is None:
            return function(*values)
        return function(**dict(zip(self.names, values, strict=True)))


@frozen(eq=False)
class Unit:
    """One method to be made. `module(*inputs)` is its eager form and so its oracle.

    ranges: input name -> inclusive range of integer test values.
    output_names: as the spec gives them; () if it gives none.
    """

    name: str
    spec: MethodSpec
    module: Positional
    inputs: tuple[ValueSpec, ...]
    dims: Mapping[str, Dim]
    ranges: Mapping[str, tuple[int, int]]
    backend: str
    options: Mapping[str, Any]


def make_units(spec_file: SpecFile, model: nn.Module) -> dict[str, Unit]:
    """All units of a spec, by method name in the spec's order.

    Raises ModelError, with the spec's line, for what only the model can tell: a module or Python
    method that is not there, a wrapper that refuses its arguments, inputs that `forward` does not
    take, a captured module that the sample run never reaches.
    """
    spec = spec_file.spec
    found = {name: submodule(spec_file, model, name, m) for name, m in spec_file.methods.items()}
    wanted = {
        (found[name], method.call or "forward")
        for name, method in spec_file.methods.items()
        if method.inputs == "captured"
    }
    captured = capture(spec_file, model, wanted) if wanted else {}
    units: dict[str, Unit] = {}
    for name, method in spec_file.methods.items():
        target = spec.targets[method.target]
        inputs, ranges = _inputs(
            spec_file, name, method, captured.get((found[name], method.call or "forward"))
        )
        units[name] = Unit(
            name=name,
            spec=method,
            module=_wrapped(spec_file, name, method, found[name], [i.name for i in inputs]),
            inputs=inputs,
            dims={d: spec.dims[d] for i in inputs for d in i.shape or () if isinstance(d, str)},
            ranges=ranges,
            backend=target.backend,
            options=target.options,
        )
    return units


def _wrapped(
    spec_file: SpecFile, name: str, method: MethodSpec, module: nn.Module, inputs: list[str]
) -> Positional:
    call = method.call or "forward"
    if method.wrapper is not None:
        wrapper = wrapper_class(spec_file, name, method.wrapper)
        try:
            module = wrapper(module, **method.args)
        except Exception as error:
            raise model_error(
                spec_file,
                ("methods", name, "wrapper"),
                f"{method.wrapper} refused {method.module or 'the model'!r} with arguments "
                f"{method.args}: {type(error).__name__}: {error}",
            ) from error
        module.eval().requires_grad_(False)
    function: Callable[..., Any] | None = getattr(module, call, None)
    if function is None:
        known = [n for n in dir(type(module)) if not n.startswith("_")]
        raise model_error(
            spec_file,
            ("methods", name, "call"),
            f"{type(module).__name__} has no method {call!r};{nearest(call, known)}",
        )
    takes = forward_names(function)
    if takes is not None:
        _check_names(spec_file, name, f"{type(module).__name__}.{call}", function, inputs)
    return Positional(module, call, tuple(inputs) if takes is not None else None)


def _check_names(
    spec_file: SpecFile, name: str, title: str, function: Callable[..., Any], inputs: list[str]
) -> None:
    parameters = inspect.signature(function).parameters
    for given in inputs:
        if given not in parameters:
            raise model_error(
                spec_file,
                ("methods", name, "inputs"),
                f"{title} takes no input {given!r};{nearest(given, parameters)}",
            )
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in inputs]
    if missing:
        raise model_error(
            spec_file,
            ("methods", name, "inputs"),
            f"{title} also needs {', '.join(map(repr, missing))}, which the spec does not list",
        )


def _inputs(
    spec_file: SpecFile, name: str, method: MethodSpec, captured: Captured | None
) -> tuple[tuple[ValueSpec, ...], dict[str, tuple[int, int]]]:
    if isinstance(method.inputs, Mapping):
        values = tuple(
            ValueSpec(n, i.dtype, _known_sizes(i, spec_file.spec.dims))
            for n, i in method.inputs.items()
        )
        return values, {n: i.range for n, i in method.inputs.items() if i.range is not None}
    if captured is None:
        raise model_error(
            spec_file,
            ("methods", name, "module"),
            f"running the model on the sample never called {method.module or 'the model'!r}",
        )
    values = tuple(
        ValueSpec(v.name, v.dtype, _named_axes(spec_file, name, v, method.axes.get(v.name, {})))
        for v in captured.inputs
    )
    for unknown in method.axes.keys() - {v.name for v in values}:
        raise model_error(
            spec_file,
            ("methods", name, "axes", unknown),
            f"no captured input is called {unknown!r};{nearest(unknown, [v.name for v in values])}",
        )
    return values, dict(captured.ranges)


def _known_sizes(given: InputSpec, dims: Mapping[str, Dim]) -> tuple[int | str, ...]:
    assert all(isinstance(size, int) or size in dims for size in given.shape)
    return given.shape


def _named_axes(
    spec_file: SpecFile, method: str, value: ValueSpec, axes: Mapping[int, str]
) -> tuple[int | str, ...]:
    assert value.shape is not None
    shape = list(value.shape)
    for axis, dim in axes.items():
        where = ("methods", method, "axes", value.name)
        if not -len(shape) <= axis < len(shape):
            message = f"{value.name!r} has {len(shape)} axes, there is no axis {axis}"
            raise model_error(spec_file, where, message)
        size = shape[axis]
        if not (isinstance(size, int) and spec_file.spec.dims[dim].admits(size)):
            raise model_error(
                spec_file,
                where,
                f"axis {axis} of {value.name!r} was {size} in the sample run, which "
                f"{spec_file.spec.dims[dim]} does not admit",
            )
        shape[axis] = dim
    return tuple(shape)
