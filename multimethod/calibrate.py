"""Example inputs of methods, from example inputs of the model.

The callable that a spec names under `calibration` yields inputs of the model or of a flow. Each
flow is run on them with eager modules in the place of its methods, so that every method is recorded
with what it will be given: the same pieces, the same caches. A method of no flow is recorded by a
hook on its submodule while the model runs; one with a callable of its own is given what that
yields.
"""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mmpack.multimethod.compile.buffers import kept_buffers
from mmpack.multimethod.compile.calls import NO_EXAMPLES, Call, Examples, Tape
from mmpack.multimethod.compile.capture import as_arguments
from mmpack.multimethod.compile.listen import listen
from mmpack.multimethod.compile.model import model_error, resolve
from mmpack.multimethod.compile.precision import is_calibrated, least_sqnr
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.errors import CallError, FlowError, ModelError
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.runtime.arguments import Arguments
from mmpack.multimethod.scale import End
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys

HELD_BACK = 4
"""Of the samples, every fourth is not calibrated with: the result is judged by it."""


def record_examples(
    spec_file: SpecFile,
    model: nn.Module,
    units: Mapping[str, Unit],
    signatures: Mapping[str, Signature],
    plans: Mapping[str, Plan],
    tape: Path,
    state: Mapping[str, tuple[str, ...]] | None = None,
) -> Examples:
    """Run what `calibration` yields, and record the calls of every quantized method.

    plans: the flows. tape: the file that the calls are written to. state: name of a buffer in the
    model -> methods that use it.
    Raises ModelError, with the spec's line, for a callable that fails or yields nothing or what
    does not fit, and for a method with ranges to be found that no sample reaches.
    """
    quantized = {name: unit for name, unit in units.items() if least_sqnr(unit) is not None}
    own = {name: unit for name, unit in quantized.items() if unit.spec.calibration is not None}
    rest = {name: unit for name, unit in quantized.items() if name not in own}
    if spec_file.spec.calibration is None:
        rest = {}  # dynamic ones; `check` has refused the others
    if not own and not rest:
        return NO_EXAMPLES
    users = state or {}
    modules = (unit.module for unit in units.values())
    with Tape(tape) as written, torch.no_grad(), kept_buffers(model, *modules):
        buffers = {
            name: [(b, buffer) for b, buffer in model.named_buffers() if name in users.get(b, ())]
            for name in quantized
        }
        recorder = _Recorder(units, signatures, buffers, written)
        for name, unit in own.items():
            _record_own(spec_file, recorder, name, str(unit.spec.calibration))
        if rest:
            _Run(spec_file, model, recorder, plans, rest).all_samples()
    for name in rest:
        if not recorder.calls[name] and is_calibrated(units[name]):
            raise _unreached(spec_file, name, units[name], plans, bool(recorder.held_back[name]))
    return recorder.examples()


class _Recorder:
    """Runs units eagerly, and notes the calls of some of them. noted: those, each with its state,
    by its name in the model."""

    def __init__(
        self,
        units: Mapping[str, Unit],
        signatures: Mapping[str, Signature],
        noted: Mapping[str, list[tuple[str, torch.Tensor]]],
        tape: Tape,
    ) -> None:
        self.units = units
        self.signatures = signatures
        self.calls: dict[str, list[Call]] = {name: [] for name in noted}
        self.before: dict[str, list[Call]] = {name: [] for name in noted}
        self.held_back: dict[str, list[Call]] = {name: [] for name in noted}
        self.ranges: dict[str, dict[End, tuple[float, float]]] = {name: {} for name in noted}
        self.flows: dict[str, list[Call]] = {}
        self.flows_held_back: dict[str, list[Call]] = {}
        self.sample = 0
        self._only: Collection[str] = noted
        self._tape = tape
        self._state = noted
        self._results = {
            name: namedtuple("Outputs", [value.name for value in signature.outputs])  # type: ignore[misc]
            for name, signature in signatures.items()
        }
        self._arguments = {name: Arguments(signature) for name, signature in signatures.items()}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.run(name, args, kwargs)

    def last_call(self, name: str) -> int:
        """Nothing here goes on with a context that it was given."""
        return 0

    def run(self, name: str, args: Any, kwargs: Any) -> Any:
        """Call a unit; the result is a tuple with the names of its outputs."""
        inputs = self.begin(name, args, kwargs)
        outputs = pytree.tree_leaves(self.units[name].module(*[i.clone() for i in inputs]))
        self.end(name, inputs, outputs)
        return self._results[name](*outputs)

    def begin(self, name: str, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """A unit is about to be called. Its inputs, in call order."""
        self._note_state(name)
        if name in self._only and not self._judges():
            self.before[name].append(self._tape.write([held for _, held in self._state[name]]))
        return list(self._arguments[name].accept(args, kwargs))

    def end(self, name: str, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """A unit was called."""
        self._note_state(name)
        if name in self._only:
            self._note(name, inputs, outputs)

    def _note(
        self, name: str, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        call = self._tape.write(inputs)
        if self._judges():
            self.held_back[name].append(call)
            return
        self.calls[name].append(call)
        signature, ranges = self.signatures[name], self.ranges[name]
        for kind, values, tensors in (
            ("input", signature.inputs, inputs),
            ("output", signature.outputs, outputs),
        ):
            for value, tensor in zip(values, tensors, strict=True):
                if tensor.is_floating_point():
                    _widen(ranges, (kind, value.name), tensor)

    def _note_state(self, name: str) -> None:
        for buffer, tensor in self._state.get(name, ()):
            if tensor.is_floating_point() and not self._judges():
                _widen(self.ranges[name], ("state", buffer), tensor)

    def note_flow(self, name: str, inputs: Mapping[str, torch.Tensor]) -> None:
        kind = self.flows_held_back if self._judges() else self.flows
        kind.setdefault(name, []).append(self._tape.write(list(inputs.values())))

    @contextmanager
    def noting(self, only: Collection[str]) -> Iterator[None]:
        """Note the calls of no others for a while: theirs have been noted."""
        before, self._only = self._only, only
        try:
            yield
        finally:
            self._only = before

    def _judges(self) -> bool:
        return self.sample % HELD_BACK == HELD_BACK - 1

    def examples(self) -> Examples:
        flows = {**self.flows, **self.flows_held_back}
        return Examples(
            self._tape.path,
            {name: tuple(calls) for name, calls in self.calls.items()},
            {name: tuple(calls) for name, calls in self.held_back.items() if calls},
            self.ranges,
            {name: tuple(calls) for name, calls in flows.items()},
            {name: tuple(buffer for buffer, _ in held) for name, held in self._state.items()},
            {name: tuple(calls) for name, calls in self.before.items()},
        )


class _Run:
    """The model's samples, one after the other, through all that quantized methods are part of."""

    def __init__(
        self,
        spec_file: SpecFile,
        model: nn.Module,
        recorder: _Recorder,
        plans: Mapping[str, Plan],
        wanted: Mapping[str, Unit],
    ) -> None:
        self.spec_file = spec_file
        self.model = model
        self.recorder = recorder
        self.flows = {
            name: Flow(plan, recorder)
            for name, plan in plans.items()
            if any(method in wanted for step in plan.steps for method in step.methods)
        }
        steps = [step for flow in self.flows.values() for step in flow.plan.steps]
        run = {step.method for step in steps}
        # Of methods for the last row, those that no flow runs otherwise.
        self.rows = {name for step in steps for name in step.methods if name in wanted} - run
        self.hooked = {n: unit for n, unit in wanted.items() if n not in run | self.rows}

    def all_samples(self) -> None:
        reference = self.spec_file.spec.calibration
        assert reference is not None
        where: Keys = ("calibration",)
        for number, sample in enumerate(_samples(self.spec_file, reference, where)):
            self.recorder.sample = number
            args, kwargs = as_arguments(sample)
            with _blamed(self.spec_file, where, f"sample {number}"):
                for name, flow in self.flows.items():
                    inputs = self._of_flow(flow.plan, args, kwargs)
                    if inputs is not None:
                        self._run_flow(flow, inputs)
                        self.recorder.note_flow(name, inputs)
                if self.hooked:
                    self._through_model(args, kwargs)

    def _run_flow(self, flow: Flow, inputs: Mapping[str, Any]) -> None:
        """Once for all rows, and once for the last one if it has methods for that alone; each time
        with the state that a program begins with."""

        def fresh() -> AbstractContextManager[None]:
            return kept_buffers(self.model) if flow.plan.state else nullcontext()

        with fresh():
            flow.run(**inputs)
        if self.rows.intersection(step.last for step in flow.plan.steps):
            with fresh(), self.recorder.noting(self.rows):
                flow.run(**inputs, give="row")

    def _of_flow(
        self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any] | None:
        """A sample as the inputs that a flow cuts; None if it is no input of this flow."""
        if args:
            reference = getattr(self.model, plan.reference, self.model.forward)
            try:
                bound = inspect.signature(reference).bind(*args).arguments
            except TypeError:
                return None
            kwargs = dict(bound)
        if not plan.cuts.keys() <= kwargs.keys():
            return None
        return {name: kwargs[name] for name in plan.cuts}

    def _through_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with ExitStack() as undo:
            for name, unit in self.hooked.items():
                undo.callback(_listen(name, unit, self.recorder))
            self.model(*args, **kwargs)


def _listen(name: str, unit: Unit, recorder: _Recorder) -> Callable[[], None]:
    """Record a submodule's calls, with what it is given by the names of its own parameters if it
    has such."""
    begun: list[list[torch.Tensor]] = []

    def note(bound: inspect.BoundArguments) -> None:
        args, kwargs = bound.args, {}
        if unit.module.names is not None:
            given = bound.arguments.items()
            args, kwargs = (), {n: v for n, v in given if isinstance(v, torch.Tensor)}
        begun.append([i.clone() for i in recorder.begin(name, args, kwargs)])

    def done(result: Any) -> None:
        recorder.end(name, begun.pop(), pytree.tree_leaves(result))

    return listen(unit.module.module, unit.module.call, note, done)


def _record_own(spec_file: SpecFile, recorder: _Recorder, name: str, reference: str) -> None:
    where: Keys = ("methods", name, "calibration")
    for number, sample in enumerate(_samples(spec_file, reference, where)):
        recorder.sample = number
        with _blamed(spec_file, where, f"sample {number}"):
            recorder.run(name, *as_arguments(sample))


def _samples(spec_file: SpecFile, reference: str, where: Keys) -> Iterator[Any]:
    """What the callable of a spec yields, with its failures told by the spec's line."""
    factory = resolve(spec_file, reference, where)
    with _blamed(spec_file, where, reference):
        made = iter(factory())
    count = 0
    while True:
        with _blamed(spec_file, where, reference):
            try:
                sample = next(made)
            except StopIteration:
                break
        yield sample
        count += 1
    if not count:
        raise model_error(spec_file, where, f"{reference} yields nothing to calibrate with")


@contextmanager
def _blamed(spec_file: SpecFile, where: Keys, what: str) -> Iterator[None]:
    """What the user's Python raises, or makes a method or flow refuse, is told at that place."""
    try:
        with users_code(spec_file, where, what):
            yield
    except (CallError, FlowError) as error:
        raise model_error(spec_file, where, f"{what}: {error}") from error


def _widen(ranges: dict[End, tuple[float, float]], end: End, tensor: torch.Tensor) -> None:
    finite = tensor[torch.isfinite(tensor)]
    if finite.numel():
        low, high = (float(value) for value in finite.aminmax())
        before = ranges.get(end, (low, high))
        ranges[end] = min(low, before[0]), max(high, before[1])


def _unreached(
    spec_file: SpecFile, name: str, unit: Unit, plans: Mapping[str, Plan], judged: bool
) -> ModelError:
    """judged: samples that are held back do reach it."""
    flows = [n for n, plan in plans.items() if any(name in step.methods for step in plan.steps)]
    if judged:
        message = (
            f"only samples that are held back to judge the result by, which is every {HELD_BACK}th "
            f"one, reach method {name!r}; yield more of that kind"
        )
    elif flows:
        wanted = " or ".join(
            f"flow {n!r}, which takes {', '.join(map(repr, plans[n].cuts))}" for n in flows
        )
        message = f"no sample is an input of {wanted}, and method {name!r} is run by nothing else"
    else:
        message = (
            f"running the model on the samples never called {unit.spec.module or 'the model'!r}, "
            f"from which method {name!r} is made; name a callable that yields its inputs: "
            "`calibration: file.py:callable` there"
        )
    return model_error(spec_file, ("calibration",), message)
