"""The one oracle: what a program computes, held against eager PyTorch.

Every method is run at the minimum, a middle and the maximum of each of its dims, and every flow on
two and a half pieces of input, against the modules that they were made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import frozen
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.agreement import require_same
from mmpack.multimethod.compare import combinations, difference
from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.compile.rehearse import shown_inputs
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.errors import CallError, ExecutionError, FlowError, VerifyError
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.reference import NOTHING, flow_inputs, flow_length, run_reference
from mmpack.multimethod.room import require_verifiable
from mmpack.multimethod.samples import random_inputs
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.spec.mistakes import Keys
from mmpack.multimethod.targets import BACKENDS


@frozen
class Checked:
    """How far one method, or flow, is from eager PyTorch: the largest error of any output, relative
    as in `compare.difference`, where it was found, and what is allowed. A flow without a reference
    is not compared, and has no error.

    place: file, line and column of the spec where the method or flow stands.
    """

    name: str
    error: float | None
    tolerance: float
    where: str
    place: str = ""

    @property
    def compared(self) -> bool:
        return self.error is not None

    @property
    def right(self) -> bool:
        return self.error is None or self.error <= self.tolerance


@frozen
class Verified:
    """A program held against its model: every method, by name, and every flow."""

    methods: Mapping[str, Checked]
    flows: tuple[Checked, ...]

    def require_right(self) -> None:
        """Raise VerifyError that names everything that is not right."""
        wrong = [c for c in (*self.methods.values(), *self.flows) if not c.right]
        if wrong:
            raise VerifyError(
                "\n".join(
                    f"{c.place}{': ' if c.place else ''}{c.name}: {c.where} is off by "
                    f"{c.error:.3g} from eager PyTorch, allowed {c.tolerance:.3g}"
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
        tolerance = max(checked[step.run].tolerance for step in spec_file.steps[name] if step.run)
        with spec_place(spec_file, ("flow", name)):
            results.append(verify_flow(program.flow(name), spec_file, units, model, tolerance))
        progress.done(f"flow {name}")
    return Verified(checked, tuple(results))


@contextmanager
def spec_place(spec_file: SpecFile, keys: Keys) -> Iterator[None]:
    """Say where in the spec the method or flow stands that an error of the block is about."""
    try:
        yield
    except (CallError, ExecutionError, FlowError) as error:
        if str(error).startswith(str(spec_file.path)):
            raise  # it says so itself
        raise type(error)(str(spec_file.mistake(keys, str(error), at_key=True))) from error


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
                with spec_place(unit.spec_file, unit.place()):
                    found = _verify_method(program, unit, seed=1 + again)
                own[unit.name] = {n: b.detach().clone() for n, b in buffers.items()}
                checked[unit.name] = _worse(checked.get(unit.name, found), found)
                if not again:
                    progress.done(unit.name)
    return checked


def _worse(one: Checked, other: Checked) -> Checked:
    return other if (other.error or 0.0) > (one.error or 0.0) else one


def _verify_method(program: Program, unit: Unit, seed: int) -> Checked:
    tolerance = unit.spec.tolerance
    if tolerance is None:
        backend = BACKENDS[unit.backend]
        tolerance = backend.tolerance(backend.options(unit.options))
    require_verifiable(unit, program.signature(unit.name).outputs)
    generator = torch.Generator().manual_seed(seed)
    at = _at(unit.spec_file, unit.place())
    worst, where = 0.0, ""
    tried = combinations(unit.dims)
    if len(tried) == 1:
        tried *= 2  # what a module keeps in its own attributes shows at the second call
    for sizes in tried:
        inputs = random_inputs(unit.inputs, sizes, unit.ranges, generator)
        place = ", ".join(f"{name}={size}" for name, size in sizes.items())
        doing = f"{unit.label}running it on {shown_inputs(unit, sizes)}"
        with torch.no_grad(), users_code(unit.spec_file, unit.place("inputs"), doing):
            expected = pytree.tree_leaves(unit.module(*[i.clone() for i in inputs]))
        got = program.run_method(unit.name, *inputs)
        if len(expected) != len(got):
            where = f"{len(got)} outputs, where eager PyTorch gives {len(expected)},"
            return Checked(unit.name, float("inf"), tolerance, where, at)
        for name, e, g in zip(got._fields, expected, got, strict=True):
            error = difference(e, g)
            if error > worst or not where:
                worst, where = error, f"output {name!r}" + (f" at {place}" if place else "")
    return Checked(unit.name, worst, tolerance, where, at)


def verify_flow(
    flow: Flow,
    spec_file: SpecFile,
    units: Mapping[str, Unit],
    model: nn.Module,
    tolerance: float,
) -> Checked:
    """Run a flow on two and a half pieces of random input and compare it with the model's own
    method of the name `reference`. One that names none is not compared."""
    plan = flow.plan
    name, at = f"flow {plan.name}", _at(spec_file, ("flow", plan.name))
    if plan.reference == NOTHING:
        return Checked(name, None, tolerance, "not compared: its reference is none", at)
    inputs = flow_inputs(spec_file, plan, units)
    expected = run_reference(spec_file, plan, model, inputs)
    got = flow.run(*inputs.values())
    errors = {n: difference(e, g) for n, e, g in zip(got._fields, expected, got, strict=True)}
    worst = max(errors, key=lambda n: errors[n])
    where = f"output {worst!r} at {flow_length(plan)} rows"
    return Checked(name, errors[worst], tolerance, where, at)


def _at(spec_file: SpecFile, keys: Keys) -> str:
    line, column = spec_file.locate(keys, at_key=True)
    return f"{spec_file.path}:{line}:{column}"
