"""A unit run in eager PyTorch at its smallest sizes: what it gives, and which buffers it touches.

It takes a moment where torch.export and a compiler take seconds, and tells most of what is wrong
with a method: that `forward` fails on the spec's shapes, that it gives other outputs than the spec
names, that it shares a buffer which the spec does not mention.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from attrs import frozen
from torch.utils import _pytree as pytree

from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.state import Touched
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.compile.watch import Watch
from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.samples import random_inputs
from mmpack.multimethod.signature import Dim, Signature, ValueSpec


@frozen(eq=False)
class Rehearsed:
    """What running a unit told. Sizes of outputs that change with a dim are that dim if they are
    equal to it, and "?" if they are something else; torch.export will tell what. `touched` is None
    if the module cannot be watched."""

    signature: Signature
    touched: Touched | None


@frozen(eq=False)
class Ran:
    """One run: what went in, the outputs, flat, and their names."""

    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[torch.Tensor, ...]


def rehearse(unit: Unit, names: Mapping[int, str]) -> Rehearsed:
    """Run a unit at its smallest sizes, and at slightly larger ones if it has dynamic dims. `names`
    maps id(tensor) to its name in the model. The module's buffers are put back afterwards.

    Raises ModelError, at the method's place in the spec, if the module fails or gives something
    else than the spec says.
    """
    known = names_in_model(unit, names)
    watch: Watch | None = Watch({known[id(buffer)]: buffer for buffer in unit.module.buffers()})
    tried = small_sizes(unit.dims)
    runs = []
    for sizes in tried:
        try:
            runs.append(_run(unit, sizes, watch))
        except ModelError:
            # Control flow such as torch.cond may not work in a watched run.
            runs.append(_run(unit, sizes, None))
            watch = None
        if watch is not None:
            _refuse_changes(unit, runs[-1].inputs, watch)
    values = tuple(
        ValueSpec(name, str(first.dtype).removeprefix("torch."), _shape(first, last, tried))
        for name, first, last in zip(runs[0].names, runs[0].outputs, runs[-1].outputs, strict=True)
    )
    touched = None
    if watch is not None:
        changed, used = watch.changed(), watch.used(leaf for run in runs for leaf in run.outputs)
        touched = Touched(changed, used - changed)
    return Rehearsed(Signature(unit.name, unit.inputs, values, dict(unit.dims)), touched)


def _run(unit: Unit, sizes: Mapping[str, int], watch: Watch | None) -> Ran:
    with kept_buffers(unit.module):
        return run_once(unit, sizes, watch)


def run_once(
    unit: Unit, sizes: Mapping[str, int], watch: AbstractContextManager[Any] | None = None
) -> Ran:
    """Run a unit on test inputs of these sizes, in the block of `watch`.

    Raises ModelError, at the method's place in the spec, for what the module raises, for a buffer
    that it puts another tensor in the place of, and for outputs that are not those of the spec.
    """
    inputs = random_inputs(unit.inputs, sizes, unit.ranges, torch.Generator().manual_seed(0))
    before = dict(unit.module.named_buffers())
    doing = f"{unit.label}running it on {shown_inputs(unit, sizes)}"
    failing = users_code(unit.spec_file, unit.place("inputs"), doing)
    with failing, torch.no_grad(), watch or nullcontext():
        result = unit.module(*inputs)
    for name, buffer in unit.module.named_buffers():
        if buffer is not before.get(name):
            own = name.removeprefix("module.")
            raise unit.error(
                f"the module puts another tensor in the place of buffer {own!r}; have it write "
                f"into the buffer: self.{own.rpartition('.')[2]}.copy_(…)"
            )
    outputs = tuple(pytree.tree_leaves(result))
    return Ran(tuple(inputs), output_names(unit, result), outputs)


def _refuse_changes(unit: Unit, inputs: tuple[torch.Tensor, ...], watch: Watch) -> None:
    """Only buffers may be changed: nothing else of a module is memory that a program keeps."""
    for value, tensor in zip(unit.inputs, inputs, strict=True):
        if watch.wrote(tensor):
            raise changed_input(unit, value.name)
    for name, parameter in unit.module.named_parameters():
        if watch.wrote(parameter):
            raise changed_constant(unit, name)


def changed_input(unit: Unit, name: str) -> ModelError:
    return unit.error(
        f"the module changes its input {name!r} in place; have it change a clone, and return that"
    )


def changed_constant(unit: Unit, name: str) -> ModelError:
    return unit.error(
        f"the module changes {name.removeprefix('module.')!r}, which is no buffer; register what "
        "methods change with register_buffer"
    )


def shown_inputs(unit: Unit, sizes: Mapping[str, int]) -> str:
    """`x float32[n=5, 3], y int64[4]`: what a unit is run on."""
    told = []
    for value in unit.inputs:
        shape = (f"{s}={sizes[s]}" if isinstance(s, str) else str(s) for s in value.shape or ())
        told.append(f"{value.name} {value.dtype}[{', '.join(shape)}]")
    return ", ".join(told) or "no inputs"


def output_names(unit: Unit, result: Any) -> tuple[str, ...]:
    """The spec's names for what a unit gives, or those that it has by itself."""
    leaves = pytree.tree_leaves(result)
    if not leaves or any(not isinstance(leaf, torch.Tensor) for leaf in leaves):
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves)
        raise unit.error(f"returns ({kinds}); only tensors can be outputs")
    names = unit.spec.outputs or _names_of(result, len(leaves))
    if len(names) != len(leaves):
        given = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise unit.error(
            f"the spec names {_count(len(names))} ({', '.join(names)}), the module returns "
            f"{len(leaves)} of shapes {given}",
            "outputs",
        )
    return names


def small_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Every dim at its minimum; and, if some are dynamic, all of those a little larger, no two
    alike where that can be had, so that they can be told apart in the shapes of outputs."""
    least = {name: dim.min for name, dim in dims.items()}
    larger = dict(least)
    for name, dim in dims.items():
        steps = range(dim.min + dim.step, dim.max + 1, dim.step) if not dim.fixed else ()
        others = set(larger.values())
        larger[name] = next((size for size in steps if size not in others), dim.min)
        if larger[name] == dim.min and not dim.fixed:
            larger[name] = dim.max
    return [least] if larger == least else [least, larger]


def names_in_model(unit: Unit, names: Mapping[int, str]) -> dict[int, str]:
    """id(tensor) -> its name in the model. What only a wrapper has is named after the method, so
    that it cannot meet another method's."""
    module = unit.module
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        id(tensor): names.get(id(tensor), f"{unit.name}:{own.removeprefix('module.')}")
        for own, tensor in tensors
    }


def _shape(
    first: torch.Tensor, last: torch.Tensor, tried: list[dict[str, int]]
) -> tuple[int | str, ...]:
    if first.dim() != last.dim():
        return tuple("?" for _ in first.shape)
    return tuple(
        a if a == b else _dim_of((a, b), tried)
        for a, b in zip(first.shape, last.shape, strict=True)
    )


def _dim_of(ends: tuple[int, int], tried: list[dict[str, int]]) -> str:
    for name in tried[0]:
        if (tried[0][name], tried[-1][name]) == ends:
            return name
    return "?"


def _names_of(result: Any, count: int) -> tuple[str, ...]:
    if isinstance(result, Mapping) and len(result) == count:
        return tuple(map(str, result))
    fields = getattr(result, "_fields", ())
    if len(fields) == count:
        return tuple(fields)
    return ("out",) if count == 1 else tuple(f"out_{i}" for i in range(count))


def _count(number: int) -> str:
    return "one output" if number == 1 else f"{number} outputs"
