"""The calls of a run: each piece through all steps, or all pieces at once as a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Literal

from attrs import field, frozen
from torch import Tensor

from mmpack.multimethod.errors import FlowError, MmpackError
from mmpack.multimethod.flow.caches import append, cut_piece, joined, positions, storage, visible
from mmpack.multimethod.flow.dispatch import TaskFailed
from mmpack.multimethod.flow.inputs import wrong
from mmpack.multimethod.flow.orders import Orders, Pipelined
from mmpack.multimethod.flow.pipelines import Callables, Pipelines
from mmpack.multimethod.flow.plan import Plan, Step
from mmpack.multimethod.flow.tasks import Piece, lasting
from mmpack.multimethod.flow.trace import Span
from mmpack.multimethod.flow.work import Times
from mmpack.multimethod.spec.flow_walk import POSITIONS

Scheduled = Literal["serial", "in-order", "out-of-order"]


@frozen(eq=False)
class Run:
    """One run: what goes in, cut in pieces, and how it is to go. caches: by name; they grow.
    workers: how many each lane has. spans: get one for each call."""

    inputs: Mapping[str, Tensor]
    pieces: Sequence[Piece]
    caches: dict[str, Tensor]
    schedule: Scheduled
    workers: Mapping[str, int]
    spans: list[Span] = field(factory=list)


class Runner:
    """What runs a plan's calls, and what it remembers for the next time. lanes: method -> the
    processor that it occupies."""

    def __init__(self, plan: Plan, methods: Callables, lanes: Mapping[str, str]) -> None:
        self.plan = plan
        self.lanes = lanes
        self._methods = methods
        self._orders = Orders()
        self._lasting = lasting(plan)
        self._pipelines = Pipelines(plan, methods, lanes)

    @property
    def times(self) -> Times:
        """Method -> seconds, by which pipelines are planned."""
        return self._orders.times

    @times.setter
    def times(self, times: Times) -> None:
        self._orders.times = times

    def run(self, run: Run, given: Sequence[Piece]) -> dict[str, Tensor]:
        """The flow's outputs on the pieces that are `given`; {} without any. A call that fails in
        a pipeline raises a FlowError that names it."""
        if run.schedule == "serial":
            return self._serial(run, given)
        return self._pipelined(run, given, run.schedule)

    def _serial(self, run: Run, given: Sequence[Piece]) -> dict[str, Tensor]:
        """Each piece through all steps, one after another."""
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.plan.joins}
        for piece in run.pieces:
            start = piece.number * self.plan.size
            values = {
                name: cut_piece(run.inputs[name], cut, start, piece.rows)
                for name, cut in self.plan.cuts.items()
            }
            values[POSITIONS] = positions(piece.first, piece.rows, self.plan.size)
            for number, step in enumerate(self.plan.steps):
                if piece not in given and number not in self._lasting:
                    continue
                began = perf_counter()
                self._step(step, values, piece, run.caches)
                lane = self.lanes[step.method]
                run.spans.append(Span(step.method, number, piece, lane, 0, began, perf_counter()))
            for name, axis in self.plan.joins.items() if piece in given else ():
                outputs[name].append(values[name].narrow(axis, 0, piece.rows))
        return joined(self.plan, outputs)

    def _step(
        self, step: Step, values: dict[str, Tensor], piece: Piece, caches: dict[str, Tensor]
    ) -> None:
        specs = self.plan.caches
        result = self._methods[step.method](
            **{
                name: visible(caches[source], specs[source], piece.end)
                if source in specs
                else values[source]
                for name, source in step.inputs
            }
        )
        for output, name in step.appends:
            cache = storage(caches, name, specs[name])
            append(cache, specs[name], getattr(result, output), piece.first, piece.rows)
        for output, name in step.outputs:
            values[name] = getattr(result, output)

    def _pipelined(
        self, run: Run, given: Sequence[Piece], schedule: Pipelined
    ) -> dict[str, Tensor]:
        """All pieces at once, each call when what it needs is there and its lane is free."""
        pipeline = self._pipelines.pipeline(tuple(run.pieces), tuple(given))
        tasks = pipeline.tasks
        order = self._orders.order(tasks, self.lanes, run.workers, schedule)
        try:
            outputs, ran = pipeline.run(run.inputs, run.caches, order, run.workers)
        except TaskFailed as failed:
            if isinstance(failed.error, KeyboardInterrupt):
                raise failed.error  # noqa: B904 (it is what it was)
            _, piece = tasks.at(failed.task)
            name = tasks.method(failed.task)
            raise failure(self.plan, name, piece, failed.error) from failed.error
        for one in ran:
            if one.task in pipeline.idle:
                continue
            step, piece = tasks.at(one.task)
            name = tasks.method(one.task)
            lane = self.lanes[name]
            run.spans.append(Span(name, step, piece, lane, one.worker, one.begin, one.end))
        self._orders.note(run.spans)
        return outputs


def failure(plan: Plan, method: str, piece: Piece, error: BaseException) -> FlowError:
    """What is said of a call that failed beside others."""
    told = str(error) if isinstance(error, MmpackError) else repr(error)
    return wrong(plan, f"method {method!r} failed on {piece}: {told}")
