"""A plan run: the input cut in pieces, each piece through all steps, caches grown.

prefill, decode = program.flow("prefill"), program.flow("decode")
context = Context()
logits = prefill.run(tokens, context=context).logits
logits = decode.run(next_token, context=context).logits   # goes on where prefill stopped
logits = prefill.run(tokens, schedule="out-of-order", lanes={"npu": 1, "cpu": 1}).logits
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Literal, get_args

from torch import Tensor

from mmpack.multimethod.errors import FlowError, MmpackError, nearest
from mmpack.multimethod.flow.caches import append, cut_piece, joined, positions, storage, visible
from mmpack.multimethod.flow.context import Context, require_own, require_room, rewind
from mmpack.multimethod.flow.dispatch import TaskFailed
from mmpack.multimethod.flow.inputs import bound, length_of, wrong
from mmpack.multimethod.flow.orders import Orders, Pipelined
from mmpack.multimethod.flow.pipelines import Callables, Pipelines
from mmpack.multimethod.flow.plan import Plan, Step
from mmpack.multimethod.flow.tasks import Piece, Tasks, lasting, make_pieces
from mmpack.multimethod.flow.trace import Span
from mmpack.multimethod.flow.work import Times, settled_workers
from mmpack.multimethod.spec.flow_walk import POSITIONS
from mmpack.multimethod.targets.base import CPU

Scheduled = Literal["serial", "in-order", "out-of-order"]
Given = Literal["all", "last", "none"]


class Flow:
    """A flow of a loaded program, or of whatever `methods` are.

    lanes: method -> the processor that it occupies; the CPU where nothing is said.
    """

    def __init__(
        self, plan: Plan, methods: Callables, lanes: Mapping[str, str] | None = None
    ) -> None:
        self.plan = plan
        self.lanes = {step.method: CPU for step in plan.steps} | dict(lanes or {})
        self._methods = methods
        self._orders = Orders()
        self._lasting = lasting(plan)
        self._pipelines = Pipelines(plan, methods, self.lanes)
        self._result = namedtuple(f"{plan.name}_outputs", list(plan.joins))  # type: ignore[misc]

    @property
    def times(self) -> Times:
        """Method -> seconds of a call, or of one on each piece, by which "out-of-order" plans.
        Where nothing was set, what the pipelined run took that had most pieces so far, or the
        second of those."""
        return self._orders.times

    @times.setter
    def times(self, times: Times) -> None:
        self._orders.times = times

    def run(
        self,
        *args: Tensor,
        context: Context | None = None,
        schedule: Scheduled = "serial",
        lanes: Mapping[str, int] | None = None,
        give: Given = "all",
        trace: list[Span] | None = None,
        **kwargs: Tensor,
    ) -> Any:
        """Run the flow on whole inputs, of any length that its caches, and the state of its steps,
        have room for.

        Returns a named tuple of its outputs, each as long as the input along the axis that it is
        cut along. With a `context` the run continues after what that context has seen; without
        one it starts afresh. Raises FlowError for inputs that do not fit, and for a context that
        goes on while the program's state is not its own; a context is then as it was.

        schedule: "serial", one call after another; or a pipeline of all pieces, in which each lane
        has as many worker threads as `lanes` says, or one, and runs its calls "in-order" or
        "out-of-order", whatever keeps the lanes busy. The outputs are the same to the bit. If a
        call fails in a pipeline the others that run come to their end, and a FlowError names it.
        give: outputs of "all" rows; of those of the "last" piece, or of "none" (None is returned):
        then steps of the other pieces that only serve their outputs are not run.
        trace: gets a Span for each call.
        """
        context = context if context is not None else Context()
        inputs = bound(self.plan, args, kwargs)
        length = length_of(self.plan, inputs)
        require_own(self.plan, context, self._last_calls())
        require_room(self.plan, context, length)
        workers = self._workers(schedule, lanes)
        if give not in get_args(Given):
            raise wrong(self.plan, f"give={give!r}: expected one of {', '.join(get_args(Given))}")
        begin = context.position
        pieces = make_pieces(self.plan, begin, length)
        given = {"all": pieces, "last": pieces[-1:], "none": ()}[give]
        spans: list[Span] = []
        outputs: Mapping[str, Tensor]
        try:
            if schedule == "serial":
                outputs = self._serial(inputs, pieces, context.caches, spans, given)
            else:
                outputs = self._pipelined(
                    inputs, pieces, context.caches, spans, given, schedule, workers
                )
            context.position = begin + length
        except BaseException:
            rewind(self.plan, context, begin)
            raise
        finally:
            context.state = self._last_calls()
            if trace is not None:
                trace += spans
        if give == "none":
            return None
        return self._result(*(outputs[name] for name in self.plan.joins))

    def _serial(
        self,
        inputs: Mapping[str, Tensor],
        pieces: Sequence[Piece],
        caches: dict[str, Tensor],
        spans: list[Span],
        given: Sequence[Piece],
    ) -> dict[str, Tensor]:
        """Each piece through all steps, one after another."""
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.plan.joins}
        for piece in pieces:
            start = piece.number * self.plan.size
            values = {
                name: cut_piece(inputs[name], cut, start, piece.rows)
                for name, cut in self.plan.cuts.items()
            }
            values[POSITIONS] = positions(piece.first, piece.rows, self.plan.size)
            for number, step in enumerate(self.plan.steps):
                if piece not in given and number not in self._lasting:
                    continue
                began = perf_counter()
                self._step(step, values, piece, caches)
                lane = self.lanes[step.method]
                spans.append(Span(step.method, number, piece, lane, 0, began, perf_counter()))
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
        self,
        inputs: Mapping[str, Tensor],
        pieces: Sequence[Piece],
        caches: dict[str, Tensor],
        spans: list[Span],
        given: Sequence[Piece],
        schedule: Pipelined,
        workers: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """All pieces at once, each call when what it needs is there and its lane is free."""
        pipeline = self._pipelines.pipeline(tuple(pieces), tuple(given))
        tasks = pipeline.tasks
        order = self._orders.order(tasks, self.lanes, workers, schedule)
        try:
            outputs, ran = pipeline.run(inputs, caches, order, workers)
        except TaskFailed as failed:
            if isinstance(failed.error, KeyboardInterrupt):
                raise failed.error  # noqa: B904 (it is what it was)
            raise self._failure(tasks, failed) from failed.error
        for one in ran:
            if one.task in pipeline.idle:
                continue
            step, piece = tasks.at(one.task)
            name = tasks.method(one.task)
            spans.append(Span(name, step, piece, self.lanes[name], one.worker, one.begin, one.end))
        self._orders.note(spans)
        return outputs

    def _failure(self, tasks: Tasks, failed: TaskFailed) -> FlowError:
        _, piece = tasks.at(failed.task)
        told = str(failed.error) if isinstance(failed.error, MmpackError) else repr(failed.error)
        return wrong(self.plan, f"method {tasks.method(failed.task)!r} failed on {piece}: {told}")

    def _workers(self, schedule: str, lanes: Mapping[str, int] | None) -> dict[str, int]:
        known = get_args(Scheduled)
        if schedule not in known:
            raise wrong(
                self.plan,
                f"no schedule {schedule!r}{nearest(schedule, known)}; "
                f"expected one of {', '.join(known)}",
            )
        try:
            return settled_workers(self.lanes.values(), lanes)
        except FlowError as error:
            raise wrong(self.plan, str(error)) from None

    def _last_calls(self) -> dict[str, int]:
        """For each buffer that steps keep rows in, the last call that reached it."""
        last = self._methods.last_call
        return {buffer: max(map(last, users)) for buffer, users in self.plan.state.items()}
