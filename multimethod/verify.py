"""The one oracle: what a program computes, held against eager PyTorch.

Every method is run at the minimum, a middle and the maximum of each of its dims, and every flow on
two and a half pieces of input, against the modules that they were made from.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.agreement import require_same
from mmpack.multimethod.calibrate import record_examples
from mmpack.multimethod.compare import combinations, difference
from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.calls import NO_EXAMPLES, Examples
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.compile.precision import least_sqnr
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.errors import VerifyError
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.noise import Noise, example_flow_inputs, judging_calls, resized
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.samples import random_inputs, random_tensor
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.targets import BACKENDS


@frozen
class Checked:
    """How far one method, or flow, is from eager PyTorch: the largest error of any output, relative
    as in `compare.difference`, where it was found, and what is allowed.

    A quantized one is held to the signal-to-quantization-noise ratio of its worst output, `sqnr`,
    of which `least_sqnr` is allowed, both in dB; `where` is of that output then, and `tolerance`
    infinite.
    """

    name: str
    error: float
    tolerance: float
    where: str
    sqnr: float | None = None
    least_sqnr: float | None = None

    @property
    def right(self) -> bool:
        if self.least_sqnr is not None:
            return self.sqnr is not None and self.sqnr >= self.least_sqnr
        return self.error <= self.tolerance

    def __str__(self) -> str:
        if self.least_sqnr is not None:
            return (
                f"{self.name}: {self.where} has a signal-to-quantization-noise ratio of "
                f"{self.sqnr:.1f} dB against eager PyTorch, at least {self.least_sqnr:.1f} dB is "
                "wanted"
            )
        return (
            f"{self.name}: {self.where} is off by {self.error:.3g} from eager PyTorch, allowed "
            f"{self.tolerance:.3g}"
        )


@frozen
class Verified:
    """A program held against its model: every method, by name, and every flow that names a
    reference."""

    methods: Mapping[str, Checked]
    flows: tuple[Checked, ...]

    def require_right(self) -> None:
        """Raise VerifyError that names everything that is not right."""
        wrong = [c for c in (*self.methods.values(), *self.flows) if not c.right]
        if wrong:
            raise VerifyError("\n".join(map(str, wrong)))


def verify(path: str | Path, spec: str | Path, *, progress: Progress | None = None) -> Verified:
    """Hold an existing program against a spec and its model: signatures first, then numbers.

    Raises VerifyError for every kind of difference.
    """
    spec_file = load_spec(spec)
    model = load_model(spec_file)
    units = make_units(spec_file, model)
    program = load(path)
    require_same(program, spec_file, units)
    records = program.manifest.state if program.manifest is not None else ()
    private = {record.name: record.methods for record in records if not record.shared}
    progress = progress if progress is not None else Silent()
    signatures = {name: program.signature(name) for name in units}
    plans = {name: flow.plan for name, flow in program.flows.items()}
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder) / "tape"
        examples = record_examples(spec_file, model, units, signatures, plans, tape)
        verified = verify_program(path, spec_file, units, model, private, progress, examples)
    verified.require_right()
    return verified


def verify_program(
    path: str | Path,
    spec_file: SpecFile,
    units: Mapping[str, Unit],
    model: nn.Module,
    private: Mapping[str, tuple[str, ...]],
    progress: Progress,
    examples: Examples = NO_EXAMPLES,
) -> Verified:
    """Run all of a program, method by method and flow by flow, beside its model. Quantized ones
    are given `examples`."""
    flows = spec_file.spec.flow
    progress.stage("verify", len(units) + len(flows))
    program = load(path)
    checked = verify_methods(program, units, model, private, progress, examples)
    results = []
    for name in flows:
        progress.start(f"flow {name}")
        program.reset()
        ranges = _flow_ranges(spec_file, name, units)
        steps = [checked[step.run] for step in spec_file.steps[name] if step.run]
        tolerance = max(step.tolerance for step in steps)
        least = _least_of_flow(flows[name].sqnr, steps)
        given = example_flow_inputs(program.flow(name).plan, examples) if least else []
        results.append(verify_flow(program.flow(name), model, ranges, tolerance, least, given))
        progress.done(f"flow {name}")
    return Verified(checked, tuple(r for r in results if r is not None))


def _flow_ranges(
    spec_file: SpecFile, flow: str, units: Mapping[str, Unit]
) -> dict[str, tuple[int, int]]:
    """Range of integer test values for each cut input: that of the method input it goes to."""
    cut = spec_file.spec.flow[flow].cut
    ranges: dict[str, tuple[int, int]] = {}
    for step in spec_file.steps[flow]:
        unit = units[step.run or ""]
        for name, values in unit.ranges.items():
            source = step.with_.get(name, name)
            if source in cut:
                ranges.setdefault(source, values)
    return ranges


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
    afterwards.
    """
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in private}
    own = {unit: {n: b.detach().clone() for n, b in buffers.items()} for unit in units}
    stateful = program.manifest is not None and bool(program.manifest.state)
    checked: dict[str, Checked] = {}
    with kept_buffers(model, *(unit.module for unit in units.values())):
        for again in (False, True) if stateful else (False,):
            for unit in units.values():
                if not again:
                    progress.start(unit.name)
                for name, buffer in buffers.items():
                    buffer.copy_(own[unit.name][name])
                least = least_sqnr(unit)
                if least is None:
                    found = _verify_method(program, unit, seed=1 + again)
                else:
                    found = _verify_quantized(program, unit, least, examples, seed=1 + again)
                own[unit.name] = {n: b.detach().clone() for n, b in buffers.items()}
                if not again or _worse(found, checked[unit.name]):
                    checked[unit.name] = found
                if not again:
                    progress.done(unit.name)
    return checked


def _verify_method(program: Program, unit: Unit, seed: int) -> Checked:
    tolerance = unit.spec.tolerance
    if tolerance is None:
        backend = BACKENDS[unit.backend]
        tolerance = backend.tolerance(backend.options(unit.options))
    generator = torch.Generator().manual_seed(seed)
    worst, where = 0.0, ""
    tried = combinations(unit.dims)
    if len(tried) == 1:
        tried *= 2  # what a module keeps in its own attributes shows at the second call
    for sizes in tried:
        inputs = random_inputs(unit.inputs, sizes, unit.ranges, generator)
        with torch.no_grad():
            expected = pytree.tree_leaves(unit.module(*[i.clone() for i in inputs]))
        got = program.run_method(unit.name, *inputs)
        if len(expected) != len(got):
            where = f"{len(got)} outputs, where eager PyTorch gives {len(expected)},"
            return Checked(unit.name, float("inf"), tolerance, where)
        place = ", ".join(f"{name}={size}" for name, size in sizes.items())
        for name, e, g in zip(got._fields, expected, got, strict=True):
            error = difference(e, g)
            if error > worst or not where:
                worst, where = error, f"output {name!r}" + (f" at {place}" if place else "")
    return Checked(unit.name, worst, tolerance, where)


def _verify_quantized(
    program: Program, unit: Unit, least: float, examples: Examples, seed: int
) -> Checked:
    """Judged by calls that calibration recorded, each dim at every size to try; by random ones if
    there are none, which only a precision without calibration can stand."""
    calls = judging_calls(unit, examples)
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
            with torch.no_grad():
                expected = pytree.tree_leaves(unit.module(*[i.clone() for i in inputs]))
            got = program.run_method(unit.name, *inputs)
            if len(expected) != len(got):
                where = f"{len(got)} outputs, where eager PyTorch gives {len(expected)},"
                return Checked(unit.name, math.inf, math.inf, where, -math.inf, least)
            for name, e, g in zip(got._fields, expected, got, strict=True):
                noises.setdefault(name, Noise()).add(e, g)
                largest = max(largest, difference(e, g))
        place = ", ".join(f"{name}={size}" for name, size in sizes.items())
        for name, noise in noises.items():
            if noise.sqnr < worst or not where:
                worst, where = noise.sqnr, f"output {name!r}" + (f" at {place}" if place else "")
    return Checked(unit.name, largest, math.inf, where, worst, least)


def _worse(one: Checked, other: Checked) -> bool:
    if one.sqnr is not None and other.sqnr is not None:
        return one.sqnr < other.sqnr
    return one.error > other.error


def _least_of_flow(own: float | None, steps: Sequence[Checked]) -> float | None:
    """What a flow is held to if some of its steps are quantized: their noise adds up, so with four
    of one precision it is four times, 6 dB more than, that of one."""
    floors = [step.least_sqnr for step in steps if step.least_sqnr is not None]
    if not floors:
        return None
    return own if own is not None else min(floors) - 10 * math.log10(len(floors))


def verify_flow(
    flow: Flow,
    model: nn.Module,
    ranges: Mapping[str, tuple[int, int]],
    tolerance: float,
    least: float | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
) -> Checked | None:
    """Run a flow on two and a half pieces of random input, or on examples, and compare it with the
    model's own method of the name `reference`. None if the flow names no reference.

    least: the least signal-to-quantization-noise ratio, for a flow with quantized steps.
    """
    plan = flow.plan
    if plan.reference == "none":
        return None
    reference = getattr(model, plan.reference, None)
    if reference is None:
        raise VerifyError(
            f"flow {plan.name!r}: the model has no method {plan.reference!r} to compare with; "
            "`reference: none` does without"
        )
    errors: dict[str, float] = {}
    noises: dict[str, Noise] = {}
    lengths = set()
    for inputs in examples or [_random_flow_inputs(plan, ranges)]:
        expected = _reference_outputs(plan, reference, model, inputs)
        got = flow.run(**dict(inputs))
        if len(expected) != len(got):
            raise VerifyError(
                f"flow {plan.name!r}: gives {len(got)} outputs, the model's {plan.reference} "
                f"{len(expected)}"
            )
        for n, e, g in zip(got._fields, expected, got, strict=True):
            errors[n] = max(errors.get(n, 0.0), difference(e, g))
            noises.setdefault(n, Noise()).add(e, g)
        name, cut = next(iter(plan.cuts.items()))
        lengths.add(inputs[name].shape[cut.axis])
    rows = "..".join(str(n) for n in sorted({min(lengths), max(lengths)}))
    if least is not None:
        worst = min(noises, key=lambda n: noises[n].sqnr)
        where = f"output {worst!r} at {rows} rows"
        sqnr = noises[worst].sqnr
        return Checked(f"flow {plan.name}", errors[worst], math.inf, where, sqnr, least)
    worst = max(errors, key=lambda n: errors[n])
    return Checked(
        f"flow {plan.name}", errors[worst], tolerance, f"output {worst!r} at {rows} rows"
    )


def _random_flow_inputs(plan: Plan, ranges: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    length = max(2 * plan.size + plan.size // 2, 3)
    length = min([length, *(cache.dim.max for cache in plan.caches.values())])
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {}
    for name, cut in plan.cuts.items():
        shape = [length if a == cut.axis else int(s) for a, s in enumerate(cut.value.shape or ())]
        inputs[name] = random_tensor(cut.value.dtype, tuple(shape), ranges.get(name), generator)
    return inputs


def _reference_outputs(
    plan: Plan, reference: Any, model: nn.Module, inputs: Mapping[str, Any]
) -> list[torch.Tensor]:
    with torch.no_grad(), kept_buffers(model):
        try:
            return [leaf.clone() for leaf in pytree.tree_leaves(reference(**inputs))]
        except Exception as error:
            raise VerifyError(
                f"flow {plan.name!r}: running the model's {plan.reference} on {', '.join(inputs)} "
                f"failed: {type(error).__name__}: {error}; `reference: none` does without"
            ) from error
