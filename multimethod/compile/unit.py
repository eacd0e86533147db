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

from mmpack.multimethod.collect import Collected
from mmpack.multimethod.compile.capture import Captured, Point, capture
from mmpack.multimethod.compile.model import (
    a_value,
    model_error,
    python_method,
    submodule,
    wrapper_class,
)
from mmpack.multimethod.compile.parameters import wrong_names
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.compile.widen import compute_in_float32
from mmpack.multimethod.errors import ModelError, nearest
from mmpack.multimethod.signature import Dim, ValueSpec
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys
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
    spec_file: SpecFile
    spec: MethodSpec
    module: Positional
    inputs: tuple[ValueSpec, ...]
    dims: Mapping[str, Dim]
    ranges: Mapping[str, tuple[int, int]]
    backend: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What a message begins with: the method's name, where its place in the spec is that of
        many methods."""
        return "" if self.name in self.spec_file.spec.methods else f"{self.name}: "

    def place(self, *keys: str) -> Keys:
        """Where the method stands in the spec, or what these keys lead to in it."""
        return ("methods", self.name, *keys)

    def mistake(self, message: str, *keys: str) -> str:
        """What is wrong with the method, with its place in the spec."""
        place = self.place(*keys)
        return str(self.spec_file.mistake(place, self.label + message, at_key=not keys))

    def error(self, message: str, *keys: str) -> ModelError:
        return ModelError(self.mistake(message, *keys))


def make_units(spec_file: SpecFile, model: nn.Module) -> dict[str, Unit]:
    """All units of a spec, by method name in the spec's order.

    Raises ModelError, with the spec's line, for what only the model can tell: a module or Python
    method that is not there, a wrapper that refuses its arguments, inputs that `forward` does not
    take, a captured module that the sample run never reaches.
    """
    found = Collected()
    units = gather_units(spec_file, model, found)
    found.check()
    return units


def gather_units(spec_file: SpecFile, model: nn.Module, found: Collected) -> dict[str, Unit]:
    """The units that can be made. What is wrong with the others goes to `found`; of the methods
    that one `each` makes, the first one's mistake."""
    points: dict[str, Point] = {}
    wrong: set[Keys] = set()
    for name, method in spec_file.methods.items():
        template = spec_file.origins["methods", name].keys
        if template not in wrong:
            wrong.add(template)
            with found.gather():
                points[name] = _point(spec_file, model, name, method)
                wrong.discard(template)
    captured: dict[Point, Captured] | None = {}
    wanted = {p: name for name, p in points.items() if spec_file.methods[name].inputs == "captured"}
    if wanted:
        captured = None
        with found.gather():
            captured = capture(spec_file, model, wanted)
    units: dict[str, Unit] = {}
    for name, point in points.items():
        method, template = spec_file.methods[name], spec_file.origins["methods", name].keys
        if template in wrong or (method.inputs == "captured" and captured is None):
            continue
        wrong.add(template)
        with found.gather():
            units[name] = _unit(spec_file, name, method, point[0], (captured or {}).get(point))
            wrong.discard(template)
    return units


def _point(spec_file: SpecFile, model: nn.Module, name: str, method: MethodSpec) -> Point:
    """The module that a method is made from, and the Python method of it that is called."""
    module, call = submodule(spec_file, model, name, method), method.call or "forward"
    if method.inputs == "captured":
        python_method(spec_file, name, module, call)
    return module, call


def _unit(
    spec_file: SpecFile,
    name: str,
    method: MethodSpec,
    module: nn.Module,
    captured: Captured | None,
) -> Unit:
    spec = spec_file.spec
    target = spec.targets[method.target]
    inputs, ranges = _inputs(spec_file, name, method, captured)
    return Unit(
        name=name,
        spec_file=spec_file,
        spec=method,
        module=_wrapped(spec_file, name, method, module, [i.name for i in inputs]),
        inputs=inputs,
        dims={d: spec.dims[d] for i in inputs for d in i.shape or () if isinstance(d, str)},
        ranges=ranges,
        backend=target.backend,
        options=_options(method, target),
    )


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
    if spec_file.spec.model.huggingface is not None:
        compute_in_float32(module)  # a wrapper may have made modules of its own
    function = python_method(spec_file, name, module, call)
    title = f"{type(module).__name__}.{call}"
    by_name, wrong = wrong_names(title, inspect.signature(function), inputs)
    if wrong is not None:
        raise model_error(spec_file, ("methods", name, "inputs"), wrong)
    return Positional(module, call, tuple(inputs) if by_name else None)


def _wrapper(spec_file: SpecFile, name: str, method: MethodSpec, module: nn.Module) -> nn.Module:
    assert method.wrapper is not None
    where = ("methods", name, "wrapper")
    wrapper = wrapper_class(spec_file, name, method.wrapper)
    given = f" with {method.args}" if method.args else ""
    doing = f"making {method.wrapper} of {_shown(method.module)}{given}"
    with users_code(spec_file, where, doing):
        try:
            wrapped = wrapper(module, **method.args)
        except ModelError as error:  # what a wrapper of ours refuses, in its own words
            raise model_error(spec_file, where, f"{doing}: {error}") from error
    if not isinstance(wrapped, nn.Module):
        message = f"{method.wrapper} made {a_value(wrapped)}, expected a torch.nn.Module"
        raise model_error(spec_file, where, message)
    return wrapped.eval().requires_grad_(False)


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
            f"running the model on the sample never called {_shown(method.module)}",
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


def _shown(module: str) -> str:
    return "the model" if module in ("", ".") else repr(module)


def _known_sizes(given: InputSpec, dims: Mapping[str, Dim]) -> tuple[int | str, ...]:
    assert all(isinstance(size, int) or size in dims for size in given.shape)
    return given.shape


def _named_axes(
    spec_file: SpecFile, method: str, value: ValueSpec, axes: Mapping[int, str]
) -> tuple[int | str, ...]:
    assert value.shape is not None
    shape = list(value.shape)
    for axis, dim in axes.items():
        where = ("methods", method, "axes", value.name, axis)
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
