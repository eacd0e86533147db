"""The last row of a flow's outputs without the others: steps with `last` are left out of the run,
and their methods for one row are called on the last row of what they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from attrs import evolve
from torch import Tensor

from mmpack.multimethod.flow.pipelines import Callables
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.flow.runner import Run, Runner, failure
from mmpack.multimethod.flow.tasks import Piece
from mmpack.multimethod.flow.trace import Span


class LastRow:
    """What runs a flow for its last row. whole: what runs all of it."""

    def __init__(
        self, plan: Plan, methods: Callables, lanes: Mapping[str, str], whole: Runner
    ) -> None:
        self.plan = plan
        self.lanes = lanes
        self._methods = methods
        self._tail = [(n, step) for n, step in enumerate(plan.steps) if step.last is not None]
        self.runner = Runner(_others(plan), methods, lanes) if self._tail else whole

    def run(self, run: Run) -> dict[str, Tensor]:
        """The last row of each of the flow's outputs, of size 1 along their axis."""
        last = run.pieces[-1]
        whole = self.runner.run(run, [last]) if self.runner.plan.steps else {}
        axes = {**self.plan.rows, **self.runner.plan.joins}
        taken = {**run.inputs, **whole}
        # Copies: nobody is to hold a piece for the sake of a row.
        values = {name: taken[name].narrow(axis, -1, 1).clone() for name, axis in axes.items()}
        row = Piece(last.number, last.end - 1, 1)
        for number, step in self._tail:
            assert step.last is not None
            began = perf_counter()
            given = {name: values[source] for name, source in step.inputs}
            try:
                result = self._methods[step.last](**given)
            except Exception as error:
                if run.schedule == "serial":
                    raise
                raise failure(self.plan, step.last, row, error) from error
            values |= {name: getattr(result, output) for output, name in step.outputs}
            lane = self.lanes[step.last]
            run.spans.append(Span(step.last, number, row, lane, 0, began, perf_counter()))
        return values


def _others(plan: Plan) -> Plan:
    """The plan without its steps with `last`. It gives what these read, and what it gave of the
    outputs."""
    steps = tuple(step for step in plan.steps if step.last is None)
    given = {name for step in steps for _, name in step.outputs}
    replaced = {name for s in plan.steps if s.last is not None for _, name in s.outputs}
    joins = {name: axis for name, axis in plan.joins.items() if name not in replaced}
    joins |= {name: axis for name, axis in plan.rows.items() if name in given}
    return evolve(plan, steps=steps, joins=joins, rows={})
