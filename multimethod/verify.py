"""The one oracle: what a program computes, held against eager PyTorch.

Every method is run at the minimum, a middle and the maximum of each of its dims, and every flow on
two and a half pieces of input, against the modules that they were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.agreement import require_same
from mmpack.multimethod.compare import combinations, difference
from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.errors import VerifyError
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.samples import random_inputs, random_tensor
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.targets import BACKENDS


@frozen
class Checked:
    """How far one method, or flow, is from eager PyTorch: the largest error of any output, relative
    as in `compare.difference`, where it was found, and what is allowed."""

    name: str
    error: float
    tolerance: float
    where: str

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance


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
            raise VerifyError(
                "\n".join(
                    f"{c.name}: {c.where} is off by {c.error:.3g} from eager PyTorch, "
                    f"allowed {c.tolerance:.3g}"
                    for c in wrong
                )
            )


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
    verified = verify_program(
        path, spec_file, units, model, private, progress if progress is not None else Silent()
    )
    verified.require_right()
    return verified


def verify_program(
    path: str | Path,
    spec_file: SpecFile,
    units: Mapping[str, Unit],
    model: nn.Module,
    private: Mapping[str, tuple[str, ...]],
    progress: Progress,
) -> Verified:
    """Run all of a program, method by method and flow by flow, beside its model."""
    flows = spec_file.spec.flow
    progress.stage("verify", len(units) + len(flows))
    program = load(path)
    checked = verify_methods(program, units, model, private, progress)
    results = []
    for name in flows:
        progress.start(f"flow {name}")
        program.reset()
        ranges = _flow_ranges(spec_file, name, units)
        tolerance = max(checked[step.run].tolerance for step in spec_file.steps[name] if step.run)
        results.append(verify_flow(program.flow(name), model, ranges, tolerance))
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
                found = _verify_method(program, unit, seed=1 + again)
                own[unit.name] = {n: b.detach().clone() for n, b in buffers.items()}
                if not again or found.error > checked[unit.name].error:
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


def verify_flow(
    flow: Flow, model: nn.Module, ranges: Mapping[str, tuple[int, int]], tolerance: float
) -> Checked | None:
    """Run a flow on two and a half pieces of random input and compare it with the model's own
    method of the name `reference`. None if the flow names no reference."""
    plan = flow.plan
    if plan.reference == "none":
        return None
    reference = getattr(model, plan.reference, None)
    if reference is None:
        raise VerifyError(
            f"flow {plan.name!r}: the model has no method {plan.reference!r} to compare with; "
            "`reference: none` does without"
        )
    length = max(2 * plan.size + plan.size // 2, 3)
    length = min([length, *(cache.dim.max for cache in plan.caches.values())])
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {}
    for name, cut in plan.cuts.items():
        shape = [length if a == cut.axis else int(s) for a, s in enumerate(cut.value.shape or ())]
        inputs[name] = random_tensor(cut.value.dtype, tuple(shape), ranges.get(name), generator)
    with torch.no_grad(), kept_buffers(model):
        try:
            expected = [leaf.clone() for leaf in pytree.tree_leaves(reference(**inputs))]
        except Exception as error:
            raise VerifyError(
                f"flow {plan.name!r}: running the model's {plan.reference} on {', '.join(inputs)} "
                f"failed: {type(error).__name__}: {error}; `reference: none` does without"
            ) from error
    got = flow.run(**inputs)
    if len(expected) != len(got):
        raise VerifyError(
            f"flow {plan.name!r}: gives {len(got)} outputs, the model's {plan.reference} "
            f"{len(expected)}"
        )
    errors = {n: difference(e, g) for n, e, g in zip(got._fields, expected, got, strict=True)}
    worst = max(errors, key=lambda n: errors[n])
    return Checked(
        f"flow {plan.name}", errors[worst], tolerance, f"output {worst!r} at {length} rows"
    )
