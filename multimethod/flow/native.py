"""A plan run as a pipeline by an engine that runs graphs of calls: `parallel.py` without Python
between two calls. Pieces are read from, and written to, the tensors that they are rows of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mmpack.multimethod.flow.caches import cut_piece, positions, storage
from mmpack.multimethod.flow.dispatch import Order, Ran, TaskFailed
from mmpack.multimethod.flow.tasks import Piece, Source, Tasks, shown
from mmpack.multimethod.runtime import Methods
from mmpack.multimethod.runtime.graph import Call, CallsFailed, Graph, Result, Rows
from mmpack.multimethod.signature import Signature, ValueSpec


@frozen
class NativeRun:
    """The tasks of a run, as calls of an engine's graph.

    given: the pieces whose outputs are wanted. lanes: their names, by number. outputs: for each
    output of the flow its dtype and shape.
    """

    tasks: Tasks
    given: tuple[Piece, ...]
    lanes: tuple[str, ...]
    outputs: Mapping[str, tuple[torch.dtype, list[int]]]
    graph: Graph

    def run(
        self,
        inputs: Mapping[str, Tensor],
        caches: dict[str, Tensor],
        order: Order,
        workers: Mapping[str, int],
        delays: Iterable[int] = (),
    ) -> tuple[dict[str, Tensor], tuple[Ran, ...]]:
        """The outputs, whole, and when which task ran. Raises TaskFailed."""
        plan, pieces = self.tasks.plan, self.tasks.pieces
        outputs = {name: torch.empty(s, dtype=d) for name, (d, s) in self.outputs.items()}
        last = pieces[-1]
        tensors = [
            *(inputs[name] for name in plan.cuts),
            *(
                cut_piece(inputs[name], cut, last.number * plan.size, last.rows)
                for name, cut in plan.cuts.items()
            ),
            torch.cat([positions(p.first, p.rows, plan.size) for p in pieces]),
            *(storage(caches, name, spec) for name, spec in plan.caches.items()),
            *outputs.values(),
        ]
        try:
            ran = self.graph.run(
                tensors,
                order.ranks,
                waits=order.waits,
                workers=[workers[lane] for lane in self.lanes],
                delays=tuple(delays),
            )
        except CallsFailed as failed:
            raise TaskFailed(failed.call, failed.error) from failed.error
        return outputs, tuple(Ran(*one) for one in ran)


def make_native_run(
    tasks: Tasks,
    methods: Methods,
    lanes: Mapping[str, str],
    given: tuple[Piece, ...],
    idle: Collection[int],
) -> NativeRun | None:
    """None if the engine of `methods` runs no graphs, or not this one. lanes: method -> lane.
    idle: tasks that only serve outputs which nobody wants."""
    signatures = {step.method: methods.signature(step.method) for step in tasks.plan.steps}
    outputs = _outputs(tasks, signatures, given)
    if outputs is None:
        return None
    names = tuple(dict.fromkeys(lanes[step.method] for step in tasks.plan.steps))
    calls = _Calls(tasks, signatures, {n: i for i, n in enumerate(names)}, lanes, given, idle)
    graph = methods.graph([calls.call(task) for task in range(len(tasks))])
    return None if graph is None else NativeRun(tasks, given, names, outputs, graph)


def plain(tensors: Iterable[Any]) -> bool:
    """Whether the memory of all of them is there to be read as it is."""
    return all(
        type(t) is Tensor and t.is_cpu and t.layout is torch.strided and not t.is_neg()
        for t in tensors
    )


def _outputs(
    tasks: Tasks, signatures: Mapping[str, Signature], given: Collection[Piece]
) -> dict[str, tuple[torch.dtype, list[int]]] | None:
    """None if an output has another axis whose size is not fixed."""
    outputs = {}
    for name, axis in tasks.plan.joins.items():
        step, output = tasks.outputs[name]
        signature = signatures[tasks.plan.steps[step].method]
        spec = signature.outputs[_number(signature.outputs, output)]
        dims = [signature.dims[size] for size in spec.shape or () if isinstance(size, str)]
        if spec.shape is None or not all(dim.fixed for dim in dims):
            return None
        shape = [n if isinstance(n, int) else signature.dims[n].min for n in spec.shape]
        shape[axis] = sum(piece.rows for piece in given)
        outputs[name] = getattr(torch, spec.dtype), shape
    return outputs


class _Calls:
    """Tasks as calls. The tensors that they have rows of are, in this order: the inputs, the last
    piece of each, which is padded, the positions of all pieces, the caches, the outputs."""

    def __init__(
        self,
        tasks: Tasks,
        signatures: Mapping[str, Signature],
        numbers: Mapping[str, int],
        lanes: Mapping[str, str],
        given: Collection[Piece],
        idle: Collection[int],
    ) -> None:
        self.tasks = tasks
        self.signatures = signatures
        self.numbers = numbers
        self.lanes = lanes
        self.given = {piece.number for piece in given}
        self.first = min((piece.first for piece in given), default=0)
        self.idle = idle
        plan = tasks.plan
        self.cuts = {name: number for number, name in enumerate(plan.cuts)}
        self.positions = 2 * len(plan.cuts)
        self.caches = {name: self.positions + 1 + n for n, name in enumerate(plan.caches)}
        behind = self.positions + 1 + len(plan.caches)
        self.joins = {name: behind + number for number, name in enumerate(plan.joins)}

    def call(self, task: int) -> Call:
        number, piece = self.tasks.at(task)
        name = self.tasks.method(task)
        lane, before = self.numbers[self.lanes[name]], self.tasks.before[task]
        if task in self.idle:
            return Call(None, lane, before)
        sources = dict(self.tasks.inputs[number])
        inputs = tuple(
            self._source(sources[value.name], piece) for value in self.signatures[name].inputs
        )
        return Call(name, lane, before, inputs, tuple(self._copies(number, piece)))

    def _source(self, source: Source, piece: Piece) -> Rows | Result:
        plan = self.tasks.plan
        if source.kind == "value":
            step = plan.steps[source.step]
            output = _number(self.signatures[step.method].outputs, source.name)
            return Result(piece.number * len(plan.steps) + source.step, output)
        if source.kind == "cache":
            spec = plan.caches[source.name]
            return Rows(self.caches[source.name], spec.axis, 0, shown(spec, piece.end))
        if source.kind == "positions":
            return Rows(self.positions, 0, piece.number * plan.size, plan.size)
        cut, tensor = plan.cuts[source.name], self.cuts[source.name]
        if piece.rows < plan.size:
            return Rows(len(self.cuts) + tensor, cut.axis, 0, plan.size)
        return Rows(tensor, cut.axis, piece.number * plan.size, plan.size)

    def _copies(self, number: int, piece: Piece) -> Iterable[tuple[int, Rows]]:
        step = self.tasks.plan.steps[number]
        outputs = self.signatures[step.method].outputs
        for output, cache in step.appends:
            axis = self.tasks.plan.caches[cache].axis
            rows = Rows(self.caches[cache], axis, piece.first, piece.rows)
            yield _number(outputs, output), rows
        for name, (giver, output) in self.tasks.outputs.items():
            if giver == number and piece.number in self.given:
                axis = self.tasks.plan.joins[name]
                rows = Rows(self.joins[name], axis, piece.first - self.first, piece.rows)
                yield _number(outputs, output), rows


def _number(values: Iterable[ValueSpec], name: str) -> int:
    return [value.name for value in values].index(name)
