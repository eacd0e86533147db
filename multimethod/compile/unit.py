"""A unit: one method to be made, ready to be exported.

`make_units` turns the methods of a spec and a model into units: the submodule found and wrapped,
the inputs named, typed and shaped.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.compile.capture import Captured, capture
from mmpack.multimethod.compile.imports import importable
from mmpack.multimethod.compile.model import (
    model_error,
    python_method,
    submodule,
    wrapper_class,
)
from mmpack.multimethod.errors import nearest
from mmpack.multimethod.signature import Dim, ValueSpec
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.records import InputSpec, MethodSpec, TargetSpec


class Positional(nn.Module):
    """Gives a module, or one of its methods, inputs by the names that the spec uses.

    torch.export sees one positional input per name, in the spec's order, whatever the order and
    kind of the parameters behind it; with `names` None they are passed on as they come.
    flat: give outputs as one tuple, whatever the module returns them in.
    """

    def __init__(
        self, module: nn.Module, call: str, names: tuple[str, ...] | None, flat: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self.call = call
        self.names = names
        self.flat = flat

    def flattened(self) -> Positional:
        return Positional(self.module, self.call, self.names, flat=True)

    def forward(self, *values: torch.Tensor) -> Any:
        function = self.module if self.call == "forward" else getattr(self.module, self.call)
        if self.names is None:
            result = function(*values)
        else:
            result = function(**dict(zip(self.names, values, strict=True)))
        return tuple(pytree.tree_leaves(result)) if self.flat else result


@frozen(eq=False)
class Unit:
    """One method to be made. `module(*inputs)` is its eager form and so its oracle.

    ranges: input name -> inclusive range of integer test values.
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
        (found[name], method.call or "forward"): name
        for name, method in spec_file.methods.items()
        if method.inputs == "captured"
    }
    for (module, call), name in wanted.items():
        python_method(spec_file, name, module, call)
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
            options=_options(method, target),
        )
    return units


def _options(method: MethodSpec, target: TargetSpec) -> dict[str, Any]:
    """The target's, with the method's own precision in the place of the target's."""
    own = {} if method.precision is None else {"precision": method.precision}
    return {**target.options, **own}


def _wrapped(
    spec_file: SpecFile, name: str, method: MethodSpec, module: nn.Module, inputs: list[str]
) -> Positional:
    call = method.call or "forward"
    if method.wrapper is not None:
        module = _wrapper(spec_file, name, method, module)
    function = python_method(spec_file, name, module, call)
    by_name = _check_names(
        spec_file, name, f"{type(module).__name__}.{call}", inspect.signature(function), inputs
    )
    return Positional(module, call, tuple(inputs) if by_name else None)


def _wrapper(spec_file: SpecFile, name: str, method: MethodSpec, module: nn.Module) -> nn.Module:
    assert method.wrapper is not None
    where = ("methods", name, "wrapper")
    wrapper = wrapper_class(spec_file, name, method.wrapper)
    try:
        with importable(spec_file.folder):
            wrapped = wrapper(module, **method.args)
    except Exception as error:
        raise model_error(
            spec_file,
            where,
            f"{method.wrapper} refused {method.module or 'the model'!r} with arguments "
            f"{method.args}: {type(error).__name__}: {error}",
        ) from error
    if not isinstance(wrapped, nn.Module):
        message = f"{method.wrapper} made a {type(wrapped).__name__}, expected a torch.nn.Module"
        raise model_error(spec_file, where, message)
    return wrapped.eval().requires_grad_(False)


def _check_names(
    spec_file: SpecFile, name: str, title: str, signature: inspect.Signature, inputs: list[str]
) -> bool:
    """Whether inputs are passed by name. They are, unless the function takes `*args`: then they
    go in the spec's order, which must begin like the function's own."""
    where = ("methods", name, "inputs")
    parameters = signature.parameters
    kinds = {p.kind for p in parameters.values()}
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    missing = [n for n in missing if n not in inputs]
    if missing:
        raise model_error(
            spec_file,
            where,
            f"{title} also needs {', '.join(map(repr, missing))}, which the spec does not list",
        )
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        first = named[: len(inputs)]
        if set(named) & set(inputs) and inputs[: len(first)] != first:
            message = f"{title} takes {', '.join(named)} first, in that order"
            raise model_error(spec_file, where, message)
        return False
    for given in inputs:
        if given not in named and inspect.Parameter.VAR_KEYWORD not in kinds:
            message = f"{title} takes no input {given!r}{nearest(given, named)}"
            raise model_error(spec_file, where, message)
    return True


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
            f"no captured input is called {unknown!r}{nearest(unknown, [v.name for v in values])}",
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
        if axis >= len(shape):
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
