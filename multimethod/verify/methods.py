"""Methods, held against the modules that they were made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.calls import NO_EXAMPLES, Examples
from mmpack.multimethod.compile.precision import least_sqnr
from mmpack.multimethod.compile.rehearse import shown_inputs
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.progress import Progress
from mmpack.multimethod.samples import random_inputs
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.verify.checked import Checked, place_of, spec_place
from mmpack.multimethod.verify.compare import combinations, difference
from mmpack.multimethod.verify.noise import Noise, judging_calls, resized
from mmpack.multimethod.verify.room import require_verifiable


def verify_methods(
    program: Program,
    units: Mapping[str, Unit],
    model: nn.Module,
    private: Mapping[str, tuple[str, ...]],
    progress: Progress,
    examples: Examples = NO_EXAMPLES,
) -> dict[str, Checked]:
    """Run every method of `units` in `program` and eagerly, and compare.

    The program's state must be fresh. Of the buffers in `private` (name in the model -> methods
    with a copy of their own) each method has its own values, all others go on from method to
    method, as in the program. If there is state, all methods are run a second time, so that one
    that reads comes after one that writes, whatever their order. The model's buffers are put back
    afterwards. A method without state is loaded only while it is run, so that a program may be
    larger than what there is memory for at once.
    """
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in private}
    own = {unit: {n: b.detach().clone() for n, b in buffers.items()} for unit in units}
    stateful = program.manifest is not None and bool(program.manifest.state)
    allowed = _allowed(program, units)
    checked: dict[str, Checked] = {}
    with kept_buffers(model, *(unit.module for unit in units.values())):
        for again in (False, True) if stateful else (False,):
            for unit in units.values():
                if not again:
                    progress.start(unit.name)
                for name, buffer in buffers.items():
                    buffer.copy_(own[unit.name][name])
                tolerance, least = allowed[unit.name]
                with spec_place(unit.spec_file, unit.place()):
                    if least is None:
                        found = _verify_method(program, unit, tolerance, seed=1 + again)
                    else:
                        found = _verify_quantized(program, unit, least, examples, seed=1 + again)
                program.unload(unit.name)
                own[unit.name] = {n: b.detach().clone() for n, b in buffers.items()}
                checked[unit.name] = _worse(checked.get(unit.name, found), found)
                if not again:
                    progress.done(unit.name)
    return checked


def _allowed(program: Program, units: Mapping[str, Unit]) -> dict[str, tuple[float, float | None]]:
    """Unit -> largest error, and least ratio for one that is judged by that. What others wrote into
    shared state is as exact as they are, so a method that has a part in it is held to no more than
    the coarsest of them, unless the spec says what it is held to."""
    own = {name: (_tolerance(unit), least_sqnr(unit)) for name, unit in units.items()}
    allowed = dict(own)
    for record in program.manifest.state if program.manifest is not None else ():
        for name in record.methods if record.shared else ():
            if (
                name in units
                and units[name].spec.tolerance is None
                and units[name].spec.sqnr is None
            ):
                others = [allowed[name], *(own[other] for other in record.methods if other in own)]
                floors = [least for _, least in others if least is not None]
                tolerance = max(tolerance for tolerance, _ in others)
                allowed[name] = tolerance, min(floors, default=None)
    return allowed


def _tolerance(unit: Unit) -> float:
    if unit.spec.tolerance is not None:
        return unit.spec.tolerance
    backend = BACKENDS[unit.backend]
    return backend.tolerance(backend.options(unit.options))


def _verify_method(program: Program, unit: Unit, tolerance: float, seed: int) -> Checked:
    require_verifiable(unit, program.signature(unit.name).outputs)
    generator = torch.Generator().manual_seed(seed)
    at = place_of(unit.spec_file, unit.place())
    worst, where = 0.0, ""
    tried = combinations(unit.dims)
    if len(tried) == 1:
        tried *= 2  # what a module keeps in its own attributes shows at the second call
    for sizes in tried:
        inputs = random_inputs(unit.inputs, sizes, unit.ranges, generator)
        place = ", ".join(f"{name}={size}" for name, size in sizes.items())
        expected, got = _both(program, unit, inputs, sizes)
        if len(expected) != len(got):
            where = f"{len(got)} outputs, where eager PyTorch gives {len(expected)},"
            return Checked(unit.name, float("inf"), tolerance, where, place=at)
        for name, e, g in zip(got._fields, expected, got, strict=True):
            error = difference(e, g)
            if error > worst or not where:
                worst, where = error, f"output {name!r}" + (f" at {place}" if place else "")
    return Checked(unit.name, worst, tolerance, where, place=at)


def _verify_quantized(
    program: Program, unit: Unit, least: float, examples: Examples, seed: int
) -> Checked:
    """Judged by calls that calibration recorded, each dim at every size to try; by random ones if
    there are none, which only a precision without calibration can stand."""
    require_verifiable(unit, program.signature(unit.name).outputs)
    calls = judging_calls(unit, examples)
    at = place_of(unit.spec_file, unit.place())
    generator = torch.Generator().manual_seed(seed)
    worst, where, largest = math.inf, "", 0.0
    for sizes in combinations(unit.dims):
        if calls:
            tried = resized(examples, calls, unit.inputs, sizes)
        else:
            tried = iter(
                [random_inputs(unit.inputs, sizes, unit.ranges, generator) for _ in range(2)]
            )
        noises: dict[str, Noise] = {}
        for inputs in tried:
            expected, got = _both(program, unit, inputs, sizes)
            if len(expected) != len(got):
                where = f"{len(got)} outputs, where eager PyTorch gives {len(expected)},"
                return Checked(
                    unit.name,
                    math.inf,
                    math.inf,
                    where,
                    place=at,
                    sqnr=-math.inf,
                    least_sqnr=least,
                )
            for name, e, g in zip(got._fields, expected, got, strict=True):
                noises.setdefault(name, Noise()).add(e, g)
                largest = max(largest, difference(e, g))
        place = ", ".join(f"{name}={size}" for name, size in sizes.items())
        for name, noise in noises.items():
            if noise.sqnr < worst or not where:
                worst, where = noise.sqnr, f"output {name!r}" + (f" at {place}" if place else "")
    return Checked(unit.name, largest, math.inf, where, place=at, sqnr=worst, least_sqnr=least)


def _both(
    program: Program, unit: Unit, inputs: Sequence[torch.Tensor], sizes: Mapping[str, int]
) -> tuple[list[Any], Any]:
    """What eager PyTorch gives for some inputs of these sizes, and what the program does, a named
    tuple."""
    doing = f"{unit.label}running it on {shown_inputs(unit, sizes)}"
    with torch.no_grad(), users_code(unit.spec_file, unit.place("inputs"), doing):
        expected = pytree.tree_leaves(unit.module(*[i.clone() for i in inputs]))
    return expected, program.run_method(unit.name, *inputs)


def _worse(one: Checked, other: Checked) -> Checked:
    if one.sqnr is not None and other.sqnr is not None:
        return other if other.sqnr < one.sqnr else one
    return other if (other.error or 0.0) > (one.error or 0.0) else one
