"""The one oracle: what a program computes, held against eager PyTorch.

Every method is run at the minimum, a middle and the maximum of each of its dims, and every flow on
two and a half pieces of input, against the modules that they were made from.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from mmpack.multimethod.compile.rehearse import shown_inputs
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.errors import CallError, ExecutionError, FlowError, VerifyError
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.noise import Noise, example_flow_inputs, judging_calls, resized
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.reference import NOTHING, flow_inputs, run_reference
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

    A quantized one is held to the signal-to-quantization-noise ratio of its worst output, `sqnr`,
    of which `least_sqnr` is allowed, both in dB; `where` is of that output then, and `tolerance`
    infinite.

    place: file, line and column of the spec where the method or flow stands.
    """

    name: str
    error: float | None
    tolerance: float
    where: str
    place: str = ""
    sqnr: float | None = None
    least_sqnr: float | None = None

    @property
    def compared(self) -> bool:
        return self.error is not None

    @property
    def right(self) -> bool:
        if self.error is None:
            return True
        if self.least_sqnr is not None:
            return self.sqnr is not None and self.sqnr >= self.least_sqnr
        return self.error <= self.tolerance

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        if self.least_sqnr is not None:
            return (
                f"{place}{self.name}: {self.where} has a signal-to-quantization-noise ratio of "
                f"{self.sqnr:.1f} dB against eager PyTorch, at least {self.least_sqnr:.1f} dB is "
                "wanted"
            )
        return (
            f"{place}{self.name}: {self.where} is off by {self.error:.3g} from eager PyTorch, "
            f"allowed {self.tolerance:.3g}"
        )


@frozen
class Verified:
    """A program held against its model: every method, by name, and every flow."""

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
        steps = [checked[step.run] for step in spec_file.steps[name] if step.run]
        tolerance = max(step.tolerance for step in steps)
        least = _least_of_flow(flows[name].sqnr, steps)
        flow = program.flow(name)
        given = example_flow_inputs(flow.plan, examples) if least is not None else []
        with spec_place(spec_file, ("flow", name)):
            results.append(verify_flow(flow, spec_file, units, model, tolerance, least, given))
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
                with spec_place(unit.spec_file, unit.place()):
                    if least is None:
                        found = _verify_method(program, unit, seed=1 + again)
                    else:
                        found = _verify_quantized(program, unit, least, examples, seed=1 + again)
                own[unit.name] = {n: b.detach().clone() for n, b in buffers.items()}
                checked[unit.name] = _worse(checked.get(unit.name, found), found)
                if not again:
                    progress.done(unit.name)
    return checked


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


def _verify_quantized(
    program: Program, unit: Unit, least: float, examples: Examples, seed: int
) -> Checked:
    """Judged by calls that calibration recorded, each dim at every size to try; by random ones if
    there are none, which only a precision without calibration can stand."""
    require_verifiable(unit, program.signature(unit.name).outputs)
    calls = judging_calls(unit, examples)
    at = _at(unit.spec_file, unit.place())
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
            doing = f"{unit.label}running it on {shown_inputs(unit, sizes)}"
            with torch.no_grad(), users_code(unit.spec_file, unit.place("inputs"), doing):
                expected = pytree.tree_leaves(unit.module(*[i.clone() for i in inputs]))
            got = program.run_method(unit.name, *inputs)
            if len(expected) != len(got):
                where = f"{len(got)} outputs, where eager PyTorch gives {len(expected)},"
                return Checked(unit.name, math.inf, math.inf, where, at, -math.inf, least)
            for name, e, g in zip(got._fields, expected, got, strict=True):
                noises.setdefault(name, Noise()).add(e, g)
                largest = max(largest, difference(e, g))
        place = ", ".join(f"{name}={size}" for name, size in sizes.items())
        for name, noise in noises.items():
            if noise.sqnr < worst or not where:
                worst, where = noise.sqnr, f"output {name!r}" + (f" at {place}" if place else "")
    return Checked(unit.name, largest, math.inf, where, at, worst, least)


def _worse(one: Checked, other: Checked) -> Checked:
    if one.sqnr is not None and other.sqnr is not None:
        return other if other.sqnr < one.sqnr else one
    return other if (other.error or 0.0) > (one.error or 0.0) else one


def _least_of_flow(own: float | None, steps: Sequence[Checked]) -> float | None:
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
    model's own method of the name `reference`. One that names none is not compared.

    least: the least signal-to-quantization-noise ratio, for a flow with quantized steps.
    """
    plan = flow.plan
    name, at = f"flow {plan.name}", _at(spec_file, ("flow", plan.name))
    if plan.reference == NOTHING:
        return Checked(name, None, tolerance, "its reference is none", at)
    errors: dict[str, float] = {}
    noises: dict[str, Noise] = {}
    lengths = set()
    for inputs in examples or [flow_inputs(spec_file, plan, units)]:
        expected = run_reference(spec_file, plan, model, inputs)
        got = flow.run(*inputs.values())
        for n, e, g in zip(got._fields, expected, got, strict=True):
            errors[n] = max(errors.get(n, 0.0), difference(e, g))
            noises.setdefault(n, Noise()).add(e, g)
        first, cut = next(iter(plan.cuts.items()))
        lengths.add(inputs[first].shape[cut.axis])
    rows = "..".join(str(n) for n in sorted({min(lengths), max(lengths)}))
    if least is not None:
        worst = min(noises, key=lambda n: noises[n].sqnr)
        where = f"output {worst!r} at {rows} rows"
        return Checked(name, errors[worst], math.inf, where, at, noises[worst].sqnr, least)
    worst = max(errors, key=lambda n: errors[n])
    return Checked(name, errors[worst], tolerance, f"output {worst!r} at {rows} rows", at)


def _at(spec_file: SpecFile, keys: Keys) -> str:
    line, column = spec_file.locate(keys, at_key=True)
    return f"{spec_file.path}:{line}:{column}"
