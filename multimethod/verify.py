"""The one oracle: what a program computes, held against eager PyTorch.

Every method is run at the minimum, a middle and the maximum of each of its dims, and every flow on
two and a half pieces of input, against the modules that they were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.compare import combinations, difference
from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.errors import VerifyError
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.plan import expanded_flows
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.samples import random_inputs, random_tensor
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.spec.records import FlowSpec
from mmpack.multimethod.targets import BACKENDS


@frozen
class Checked:
    """How far one method, or flow, is from eager PyTorch: the largest absolute error of any output
    (relative to the output's largest magnitude where that is above 1), where it was found, and
    what is allowed."""

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
    missing = [name for name in units if name not in program]
    if missing:
        raise VerifyError(f"{path} has no method {', '.join(map(repr, missing))}")
    for unit in units.values():
        _require_signature(program, unit)
    _require_extras(program, spec_file)
    records = program.manifest.state if program.manifest is not None else ()
    private = {record.name: record.methods for record in records if not record.shared}
    verified = verify_program(
        path, spec_file, units, model, private, progress if progress is not None else Silent()
    )
    verified.require_right()
    return verified


def _require_signature(program: Program, unit: Unit) -> None:
    has = program.signature(unit.name)
    named = tuple(value.name for value in has.outputs)
    if has.inputs != unit.inputs or has.dims != unit.dims:
        wanted = attrs.evolve(has, inputs=unit.inputs, dims=unit.dims)
        raise VerifyError(f"{unit.name}: the program takes\n  {has}\nthe spec says\n  {wanted}")
    if unit.spec.outputs and unit.spec.outputs != named:
        raise VerifyError(
            f"{unit.name}: the program's outputs are {', '.join(named)}, the spec says "
            f"{', '.join(unit.spec.outputs)}"
        )


def _require_extras(program: Program, spec_file: SpecFile) -> None:
    """Flows and constants are what the spec says."""
    manifest = program.manifest
    flows = manifest.flow if manifest is not None else {}
    for name, flow in expanded_flows(spec_file).items():
        if name not in flows:
            raise VerifyError(f"{program.path} has no flow {name!r}")
        if PLAIN.structure(flows[name], FlowSpec) != flow:
            raise VerifyError(f"flow {name!r} of {program.path} is not as the spec says")
    for name, value in spec_file.spec.constants.items():
        if name not in program.constants:
            raise VerifyError(f"{program.path} has no constant {name!r}")
        if program.constants[name] != value:
            raise VerifyError(
                f"constant {name!r} of {program.path} is {program.constants[name]!r}, the spec "
                f"says {value!r}"
            )


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
    tolerance = max((c.tolerance for c in checked.values()), default=0.0)
    results = []
    for name in flows:
        progress.start(f"flow {name}")
        program.reset()
        ranges = _flow_ranges(spec_file, name, units)
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

    The program's state must be fresh. Buffers in `private` (name in the model -> methods with a
    copy of their own) start anew for each method, all others go on from method to method, as in
    the program. The model's buffers are put back afterwards.
    """
    start = {name: b.detach().clone() for name, b in model.named_buffers() if name in private}
    checked: dict[str, Checked] = {}
    with kept_buffers(model, *(unit.module for unit in units.values())):
        for unit in units.values():
            progress.start(unit.name)
            for name, buffer in model.named_buffers():
                if name in private:
                    buffer.copy_(start[name])
            checked[unit.name] = _verify_method(program, unit)
            progress.done(unit.name)
    return checked


def _verify_method(program: Program, unit: Unit) -> Checked:
    tolerance = unit.spec.tolerance
    if tolerance is None:
        backend = BACKENDS[unit.backend]
        tolerance = backend.tolerance(backend.options(unit.options))
    generator = torch.Generator().manual_seed(1)
    worst, where = 0.0, ""
    tried = combinations(unit.dims)
    if len(tried) == 1:
        tried *= 2  # what a module keeps in its own attributes shows at the second call
    for sizes in tried:
        inputs = random_inputs(unit.inputs, sizes, unit.ranges, generator)
        with torch.no_grad():
            expected = pytree.tree_leaves(unit.module(*[i.clone() for i in inputs]))
        got = program.run_method(unit.name, *inputs)
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
