"""The pipelines of a flow: which calls a run makes, and what runs them. Made once for a number of
rows at a position, and kept for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from attrs import frozen
from torch import Tensor

from mmpack.multimethod.flow.caches import joined
from mmpack.multimethod.flow.dispatch import Order, Ran, dispatch
from mmpack.multimethod.flow.native import NativeRun, make_native_run, plain
from mmpack.multimethod.flow.parallel import PipelinedRun
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.flow.tasks import Piece, Tasks, lasting, make_tasks
from mmpack.multimethod.flow.work import make_work
from mmpack.multimethod.runtime import Methods

KEPT = 8
"""Pipelines that a flow keeps."""


class Callables(Protocol):
    """Methods by name; each takes its inputs by name and gives a named tuple of tensors that are
    nobody else's: a flow passes them on."""

    def __getitem__(self, name: str, /) -> Callable[..., Any]: ...

    def last_call(self, name: str, /) -> int:
        """A number that the last call of a method with state has to itself; 0 if its state is what
        it was at the beginning."""
        ...


@frozen
class Pipeline:
    """The calls of one run, over methods of the engine's own where that can run them as a whole
    (`native`), else from Python.

    given: the pieces whose outputs are wanted. idle: tasks that only serve others.
    """

    tasks: Tasks
    methods: Callables
    lanes: Mapping[str, str]
    given: tuple[Piece, ...]
    idle: frozenset[int]
    native: NativeRun | None

    def run(
        self,
        inputs: Mapping[str, Tensor],
        caches: dict[str, Tensor],
        order: Order,
        workers: Mapping[str, int],
    ) -> tuple[dict[str, Tensor], tuple[Ran, ...]]:
        """The flow's outputs, and when which task ran. Raises TaskFailed."""
        if self.native is not None and plain([*inputs.values(), *caches.values()]):
            return self.native.run(inputs, caches, order, workers)
        names = dict.fromkeys(step.method for step in self.tasks.plan.steps)
        methods = {name: self.methods[name] for name in names}
        if isinstance(self.methods, Methods):
            for name in names:
                self.methods[name].prepare()  # here: one with state writes to memory of others
        run = PipelinedRun(self.tasks, methods, inputs, caches, self.given, self.idle)
        ran = dispatch(make_work(self.tasks, self.lanes), workers, order, run.perform)
        return joined(self.tasks.plan, run.outputs), ran


class Pipelines:
    """Those of one flow."""

    def __init__(self, plan: Plan, methods: Callables, lanes: Mapping[str, str]) -> None:
        self._plan = plan
        self._methods = methods
        self._lanes = lanes
        self._lasting = lasting(plan)
        self._made: OrderedDict[tuple[object, ...], Pipeline] = OrderedDict()

    def pipeline(self, pieces: tuple[Piece, ...], given: tuple[Piece, ...]) -> Pipeline:
        """given: the pieces whose outputs are wanted."""
        key = pieces[0].first, pieces[-1].end, given
        if key not in self._made:
            self._made[key] = self._make(pieces, given)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def _make(self, pieces: tuple[Piece, ...], given: tuple[Piece, ...]) -> Pipeline:
        tasks = make_tasks(self._plan, pieces)
        idle = frozenset(task for task in range(len(tasks)) if self._idle(tasks, task, given))
        native = None
        if isinstance(self._methods, Methods):
            native = make_native_run(tasks, self._methods, self._lanes, given, idle)
        return Pipeline(tasks, self._methods, self._lanes, given, idle, native)

    def _idle(self, tasks: Tasks, task: int, given: tuple[Piece, ...]) -> bool:
        step, piece = tasks.at(task)
        return piece not in given and step not in self._lasting
