"""Flows, held against the model's own methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.verify.checked import Checked, place_of
from mmpack.multimethod.verify.compare import difference
from mmpack.multimethod.verify.noise import Noise
from mmpack.multimethod.verify.reference import NOTHING, flow_inputs, run_reference


def least_of_flow(own: float | None, steps: Sequence[Checked]) -> float | None:
    """What a flow is held to if some of its steps are quantized: their noise adds up, so with four
    of one precision it is four times, 6 dB more than, that of one."""
    floors = [step.least_sqnr for step in steps if step.least_sqnr is not None]
    if not floors:
        return None
    return own if own is not None else min(floors) - 10 * math.log10(len(floors))


def verify_flow(
    flow: Flow,
    spec_file: SpecFile,
    units: Mapping[str, Unit],
    model: nn.Module,
    tolerance: float,
    least: float | None = None,
    examples: Sequence[Mapping[str, torch.Tensor]] = (),
) -> Checked:
    """Run a flow on two and a half pieces of random input, or on examples, and compare it with the
    model's own method of the name `reference`. One that names none is not compared. One that has
    methods for its last row is run for that alone too.

    least: the least signal-to-quantization-noise ratio, for a flow with quantized steps. Its last
    row alone is held to that against the last one of the whole run.
    """
    plan = flow.plan
    title, at = f"flow {plan.name}", place_of(spec_file, ("flow", plan.name))
    if plan.reference == NOTHING:
        return Checked(title, None, tolerance, "its reference is none", place=at)
    errors: dict[str, float] = {}
    noises: dict[str, Noise] = {}
    lengths = set()
    # One that keeps state is run twice: it must not see what the first run has left there.
    seeds = (1, 2) if plan.state else (1,)
    for inputs in examples or [flow_inputs(spec_file, plan, units, seed) for seed in seeds]:
        reference = run_reference(spec_file, plan, model, inputs)
        expected = dict(zip(plan.joins, reference, strict=True))
        got = flow.run(*inputs.values())._asdict()
        compared = [(f"output {name!r}", expected[name], got[name]) for name in plan.joins]
        if any(step.last is not None for step in plan.steps):
            # Of a single row the ratio is a matter of chance; but the whole run has the same noise.
            right = expected if least is None else got
            row = flow.run(*inputs.values(), give="row")._asdict()
            compared += [
                (f"the last row of output {name!r}", _last_row(right[name], axis), row[name])
                for name, axis in plan.joins.items()
            ]
        for which, e, g in compared:
            errors[which] = max(errors.get(which, 0.0), difference(e, g))
            if least is not None:
                noises.setdefault(which, Noise()).add(e, g)
        first, cut = next(iter(plan.cuts.items()))
        lengths.add(inputs[first].shape[cut.axis])
    rows = "..".join(str(n) for n in sorted({min(lengths), max(lengths)}))
    if least is not None:
        worst = min(noises, key=lambda n: noises[n].sqnr)
        where = f"{worst} at {rows} rows"
        sqnr = noises[worst].sqnr
        return Checked(title, errors[worst], math.inf, where, place=at, sqnr=sqnr, least_sqnr=least)
    worst = max(errors, key=lambda n: errors[n])
    return Checked(title, errors[worst], tolerance, f"{worst} at {rows} rows", place=at)


def _last_row(expected: torch.Tensor, axis: int) -> torch.Tensor:
    """Of what has no such axis, and so differs anyway, all."""
    if axis >= expected.dim() or not expected.shape[axis]:
        return expected
    return expected.narrow(axis, -1, 1)
