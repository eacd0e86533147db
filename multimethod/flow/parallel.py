"""A plan run as a pipeline: its tasks dispatched to lanes, whatever can run beside each other does.

The result is that of the serial run, to the bit: each task gets what it would get there.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mmpack.multimethod.flow.caches import append, cut_piece, positions, storage, visible
from mmpack.multimethod.flow.tasks import Piece, Source, Tasks


class PipelinedRun:
    """The values of one run. `perform` runs a task, in any thread. given: the pieces whose outputs
    are wanted. idle: tasks that only serve outputs which nobody wants."""

    def __init__(
        self,
        tasks: Tasks,
        methods: Mapping[str, Callable[..., Any]],
        inputs: Mapping[str, Tensor],
        caches: dict[str, Tensor],
        given: Collection[Piece],
        idle: Collection[int],
    ) -> None:
        self.tasks = tasks
        self._given = frozenset(piece.number for piece in given)
        self._idle = idle
        self._outputs: dict[str, dict[int, Tensor]] = {name: {} for name in tasks.outputs}
        self._methods = methods
        self._inputs = inputs
        self._caches = {name: storage(caches, name, s) for name, s in tasks.plan.caches.items()}
        self._values: dict[tuple[int, Source], Tensor] = {}
        reads = Counter(s for step in tasks.inputs for _, s in step if s.kind == "value")
        self._left = {(p.number, s): n for p in tasks.pieces for s, n in reads.items()}
        self._lock = threading.Lock()
        # Both are a thread's own, and the caller's hold for the whole run.
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    @property
    def outputs(self) -> dict[str, list[Tensor]]:
        """For each output of the flow those of its pieces that are wanted, once all is over."""
        return {
            name: [pieces[number] for number in sorted(self._given)]
            for name, pieces in self._outputs.items()
        }

    def perform(self, task: int) -> None:
        number, piece = self.tasks.at(task)
        if task not in self._idle:
            inference, grad = self._modes
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                self._perform(number, piece)
        with self._lock:
            for _, source in self.tasks.inputs[number]:
                self._release(piece.number, source)

    def _perform(self, number: int, piece: Piece) -> None:
        plan, sources = self.tasks.plan, self.tasks.inputs[number]
        step = plan.steps[number]
        result = self._methods[step.method](
            **{name: self._input(source, piece) for name, source in sources}
        )
        for output, cache in step.appends:
            spec, rows = plan.caches[cache], getattr(result, output)
            append(self._caches[cache], spec, rows, piece.first, piece.rows)
        for name, (giver, output) in self.tasks.outputs.items():
            if giver == number:
                rows = getattr(result, output).narrow(plan.joins[name], 0, piece.rows)
                self._outputs[name][piece.number] = rows
        with self._lock:
            for output, _ in step.outputs:
                value = piece.number, Source("value", output, number)
                if value in self._left:
                    self._values[value] = getattr(result, output)

    def _input(self, source: Source, piece: Piece) -> Tensor:
        plan = self.tasks.plan
        if source.kind == "value":
            return self._values[piece.number, source]
        if source.kind == "cache":
            return visible(self._caches[source.name], plan.caches[source.name], piece.end)
        if source.kind == "positions":
            return positions(piece.first, piece.rows, plan.size)
        start = piece.number * plan.size
        return cut_piece(self._inputs[source.name], plan.cuts[source.name], start, piece.rows)

    def _release(self, piece: int, source: Source) -> None:
        """Let go of a value that no other task will read."""
        if source.kind == "value":
            self._left[piece, source] -= 1
            if self._left[piece, source] == 0:
                self._values.pop((piece, source), None)  # what is idle has given none
