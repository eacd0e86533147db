"""The calls that a run of a flow makes, and which must be over before which: a plan's real edges.

    tasks = make_tasks(plan, pieces=make_pieces(plan, begin=0, length=500))
    tasks.before[7]  # the numbers of the tasks that task 7 waits for

Tasks are numbered in the serial order: piece by piece, and in a piece step by step. Four things
make one wait for another:

- a value: its step's task in the same piece;
- a cache: whoever reads it in a piece needs what was appended in that piece and all before;
- room in a cache: a reader is shown more rows than there are where the cache's dim has a step or a
  minimum. Run serially it sees zeros there, so what a later piece appends there waits for it;
- state: calls that reach one buffer of the program keep their serial order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from attrs import frozen

from mmpack.multimethod.flow.plan import CacheSpec, Plan, Step


@frozen
class Piece:
    """Rows `first` to `last` of a conversation, counted from 0; at most `plan.size` of them."""

    number: int
    first: int
    rows: int

    @property
    def end(self) -> int:
        return self.first + self.rows

    def __str__(self) -> str:
        return f"piece {self.number} (rows {self.first} to {self.end - 1})"


@frozen
class Source:
    """Where an input comes from: `name` is that of a cut input or a cache; of a value, that of the
    output, which `step` gives in the same piece."""

    kind: Literal["cut", "positions", "cache", "value"]
    name: str = ""
    step: int = -1


@frozen
class Tasks:
    """The tasks of a run.

    inputs: for each step its inputs by name, with their sources. outputs: for each output of the
    flow the step that gives it, and under which name. before: for each task the tasks that must
    be over before it begins, all of smaller numbers.
    """

    plan: Plan
    pieces: tuple[Piece, ...]
    inputs: tuple[tuple[tuple[str, Source], ...], ...]
    outputs: dict[str, tuple[int, str]]
    before: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.before)

    def at(self, task: int) -> tuple[int, Piece]:
        """The step and the piece of a task."""
        piece, step = divmod(task, len(self.plan.steps))
        return step, self.pieces[piece]

    def method(self, task: int) -> str:
        return self.plan.steps[task % len(self.plan.steps)].method


def make_pieces(plan: Plan, begin: int, length: int) -> tuple[Piece, ...]:
    """`length` rows that follow on `begin` others, cut as the plan says; the last may be short."""
    starts = range(0, length, plan.size)
    return tuple(
        Piece(number, begin + start, min(plan.size, length - start))
        for number, start in enumerate(starts)
    )


def make_tasks(plan: Plan, pieces: Sequence[Piece]) -> Tasks:
    """The tasks of a run over these pieces."""
    inputs, outputs = _wires(plan)
    before: list[set[int]] = [set() for _ in range(len(plan.steps) * len(pieces))]
    appends = {cache: n for n, step in enumerate(plan.steps) for _, cache in step.appends}
    count = len(plan.steps)
    for piece in pieces:
        for number, sources in enumerate(inputs):
            waiting = before[piece.number * count + number]
            for _, source in sources:
                if source.kind == "value":
                    waiting.add(piece.number * count + source.step)
                elif source.kind == "cache":
                    append = appends[source.name]
                    waiting.update(range(append, (piece.number + 1) * count, count))
                    for later in _overwriting(plan.caches[source.name], pieces, piece):
                        before[later * count + append].add(piece.number * count + number)
    for chain in _chains(plan, len(pieces)):
        for first, second in pairwise(chain):
            before[second].add(first)
    return Tasks(plan, tuple(pieces), inputs, outputs, tuple(tuple(sorted(b)) for b in before))


def lasting(plan: Plan) -> frozenset[int]:
    """The steps of a piece that later pieces depend on, by what they append or write to state, and
    those that give these something. The others only serve the outputs of the piece itself."""
    inputs, _ = _wires(plan)
    steps = {n for n, step in enumerate(plan.steps) if step.appends or _buffers(plan, step)}
    for number in reversed(range(len(plan.steps))):
        if number in steps:
            steps |= {source.step for _, source in inputs[number] if source.kind == "value"}
    return frozenset(steps)


def shown(spec: CacheSpec, length: int) -> int:
    """How many rows of a cache a reader gets where there are `length`: as many as its dim admits.
    The rest are zero."""
    step = spec.dim.step
    return max(-(-length // step) * step, spec.dim.min)


def _wires(
    plan: Plan,
) -> tuple[tuple[tuple[tuple[str, Source], ...], ...], dict[str, tuple[int, str]]]:
    """Names in the flow, looked up: what each step's inputs are, and the flow's outputs. A name
    means what was given last under it."""
    given: dict[str, Source] = {}
    inputs = []
    for number, step in enumerate(plan.steps):
        inputs.append(tuple((name, _source(plan, given, source)) for name, source in step.inputs))
        given |= {name: Source("value", output, number) for output, name in step.outputs}
    outputs = {name: (given[name].step, given[name].name) for name in plan.joins}
    return tuple(inputs), outputs


def _source(plan: Plan, given: dict[str, Source], name: str) -> Source:
    if name in plan.caches:
        return Source("cache", name)
    if name in given:
        return given[name]
    return Source("cut", name) if name in plan.cuts else Source("positions")


def _overwriting(spec: CacheSpec, pieces: Sequence[Piece], reader: Piece) -> list[int]:
    """The later pieces that append rows which a reader in this one is shown as zeros."""
    end = shown(spec, reader.end)
    return [piece.number for piece in pieces[reader.number + 1 :] if piece.first < end]


def _chains(plan: Plan, pieces: int) -> list[list[int]]:
    """For each buffer of the program the tasks that reach it, in the serial order."""
    reaching: dict[str, list[int]] = defaultdict(list)
    for number, step in enumerate(plan.steps):
        for buffer in _buffers(plan, step):
            reaching[buffer].append(number)
    count = len(plan.steps)
    return [
        [piece * count + number for piece in range(pieces) for number in steps]
        for steps in reaching.values()
    ]


def _buffers(plan: Plan, step: Step) -> list[str]:
    return [buffer for buffer, users in plan.state.items() if step.method in users]
