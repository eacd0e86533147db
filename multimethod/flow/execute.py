"""A plan run: the input cut in pieces, each piece through all steps, caches grown.

prefill, decode = program.flow("prefill"), program.flow("decode")
context = Context()
logits = prefill.run(tokens, context=context).logits
logits = decode.run(next_token, context=context).logits   # goes on where prefill stopped
logits = prefill.run(tokens, schedule="out-of-order", lanes={"npu": 1, "cpu": 1}).logits
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from mmpack.multimethod.errors import FlowError, nearest
from mmpack.multimethod.flow.context import Context, require_own, require_room, rewind
from mmpack.multimethod.flow.inputs import bound, length_of, wrong
from mmpack.multimethod.flow.last import LastRow
from mmpack.multimethod.flow.pipelines import Callables
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.flow.runner import Run, Runner, Scheduled
from mmpack.multimethod.flow.tasks import make_pieces
from mmpack.multimethod.flow.trace import Span
from mmpack.multimethod.flow.work import Times, settled_workers
from mmpack.multimethod.targets.base import CPU

Given = Literal["all", "last", "row", "none"]


class Flow:
    """A flow of a loaded program, or of whatever `methods` are.

    lanes: method -> the processor that it occupies; the CPU where nothing is said.
    """

    def __init__(
        self, plan: Plan, methods: Callables, lanes: Mapping[str, str] | None = None
    ) -> None:
        self.plan = plan
        used = (name for step in plan.steps for name in step.methods)
        self.lanes = dict.fromkeys(used, CPU) | dict(lanes or {})
        self._methods = methods
        self._whole = Runner(plan, methods, self.lanes)
        self._last = LastRow(plan, methods, self.lanes, self._whole)
        self._result = namedtuple(f"{plan.name}_outputs", list(plan.joins))  # type: ignore[misc]

    @property
    def times(self) -> Times:
        """Method -> seconds of a call, or of one on each piece, by which "out-of-order" plans.
        Where nothing was set, what the pipelined run took that had most pieces so far, or the
        second of those."""
        return self._whole.times or self._last.runner.times

    @times.setter
    def times(self, times: Times) -> None:
        for runner in (self._whole, self._last.runner):
            runner.times = times

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
        then steps of the other pieces that only serve their outputs are not run. "row": outputs of
        the last row alone; steps with `last` are not run, but their methods for one row, on one,
        when all else is over. These may round otherwise than the methods that read a piece; the
        bits are the same in all schedules.
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
        run = Run(inputs, pieces, context.caches, schedule, workers)
        try:
            if give == "row":
                outputs = self._last.run(run)
            else:
                given = {"all": pieces, "last": pieces[-1:], "none": ()}[give]
                outputs = self._whole.run(run, given)
            context.position = begin + length
        except BaseException:
            rewind(self.plan, context, begin)
            raise
        finally:
            context.state = self._last_calls()
            if trace is not None:
                trace += run.spans
        if give == "none":
            return None
        return self._result(*(outputs[name] for name in self.plan.joins))

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
