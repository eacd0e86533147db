"""A program's flow as a pipeline: what each policy would make of it, and what a real run was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen

from mmpack.multimethod.errors import FlowError, nearest
from mmpack.multimethod.flow.context import Context, require_room
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.optimum import optimum
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.flow.policies import POLICIES, out_of_order
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.flow.runner import Scheduled
from mmpack.multimethod.flow.simulate import Schedule, lower_bound, simulate
from mmpack.multimethod.flow.tasks import Tasks, make_pieces, make_tasks
from mmpack.multimethod.flow.trace import Span, measured
from mmpack.multimethod.flow.work import Times, Work, make_work, settled_workers
from mmpack.multimethod.runtime.engines import Threads
from mmpack.multimethod.samples import random_tensor
from mmpack.multimethod.targets.base import CPU

_MANY = 8


@frozen
class Comparison:
    """What the policies make of one flow. chosen: the policy that "out-of-order" takes. optimum:
    the shortest makespan there is; None where it is too much to search. timed: whether times are
    seconds; else they only relate to each other."""

    flow: str
    pieces: int
    work: Work
    workers: Mapping[str, int]
    schedules: tuple[Schedule, ...]
    bound: float
    optimum: float | None
    chosen: str
    timed: bool


@frozen
class Traced:
    """A run that took place. seconds: from the first call's beginning to the last one's end.
    bound: the least that calls which take as long as these did need on those workers. bubbles:
    the share of each lane's time that it stood idle. times: method -> seconds for each piece."""

    flow: str
    schedule: str
    rows: int
    spans: tuple[Span, ...]
    workers: Mapping[str, int]
    seconds: float
    bound: float
    bubbles: Mapping[str, float]
    times: Times


def compare_schedules(
    path: Path,
    flow: str | None = None,
    *,
    pieces: int | None = None,
    lanes: Mapping[str, int] | None = None,
    times: Path | None = None,
    ratio: Sequence[float] | None = None,
) -> Comparison:
    """Simulate a flow under every policy; without a name the one whose pieces have most rows.

    pieces: in how many the input is cut; none given: 8, or as many as there is room for.
    times: a file as `report.trace_files` writes it. ratio: how much work the lanes have, in the
    order of `lanes`, or with the CPU last; each call of a lane takes as long as the others there.
    """
    program = load(path, engine="stock")  # nothing is run
    chosen = program.flow(flow or _widest(program))
    plan = chosen.plan
    pieces = pieces or max(1, min(_MANY, _room(plan) // plan.size))
    require_room(plan, Context(), pieces * plan.size)
    tasks = make_tasks(plan, make_pieces(plan, 0, pieces * plan.size))
    known = read_times(times, program) if times is not None else {}
    work = make_work(tasks, chosen.lanes, known)
    workers = _workers(chosen, work, lanes)
    if ratio is not None:
        work = _in_ratio(work, lanes or {}, ratio)
    return Comparison(
        flow=plan.name,
        pieces=pieces,
        work=work,
        workers=workers,
        schedules=tuple(simulate(work, workers, policy) for policy in POLICIES),
        bound=lower_bound(work, workers),
        optimum=optimum(work, workers),
        chosen=out_of_order(work, workers).policy,
        timed=times is not None,
    )


def trace_flow(
    path: Path,
    flow: str,
    rows: int,
    *,
    schedule: Scheduled = "out-of-order",
    lanes: Mapping[str, int] | None = None,
    threads: Threads = None,
    data: Path | None = None,
) -> Traced:
    """Run a flow on `rows` rows of random input, twice: the first time loads its methods and
    measures them, by which the second is planned, and that one is told. threads, data: as of
    `load`.
    """
    program = load(path, threads=threads, data=data)
    chosen = program.flow(flow)
    inputs = _random_inputs(program, chosen.plan, rows)
    spans: list[Span] = []
    chosen.run(schedule=schedule, lanes=lanes, **inputs)
    chosen.run(schedule=schedule, lanes=lanes, trace=spans, **inputs)
    tasks = make_tasks(chosen.plan, make_pieces(chosen.plan, 0, rows))
    work = _as_it_was(tasks, chosen, spans)
    workers = _workers(chosen, work, lanes)
    seconds = max(span.end for span in spans) - min(span.begin for span in spans)
    return Traced(
        flow=flow,
        schedule=schedule,
        rows=rows,
        spans=tuple(spans),
        workers=workers,
        seconds=seconds,
        bound=lower_bound(work, workers),
        bubbles={lane: 1 - own / (seconds * workers[lane]) for lane, own in work.per_lane.items()},
        times=measured(spans),
    )


def read_times(path: Path, program: Program) -> Times:
    """Times of a program's methods out of a JSON file: {method: seconds, or seconds by piece}.
    Raises FlowError for a file that cannot be read or says something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FlowError(f"{path}: no times can be read from it: {error}") from error
    if not isinstance(found, dict) or not found:
        raise FlowError(f"{path}: expected a JSON object, method: seconds")
    for name, seconds in found.items():
        if name not in program:
            raise FlowError(f"{path}: the program has no method {name!r}{nearest(name, program)}")
        several = seconds if isinstance(seconds, list) and seconds else [seconds]
        if not all(type(one) in (int, float) and 0 <= one < float("inf") for one in several):
            raise FlowError(f"{path}: {name}: expected seconds, or a list of them, got {seconds!r}")
    return found


def _widest(program: Program) -> str:
    sizes = {name: flow.plan.size for name, flow in program.flows.items()}
    widest = [name for name, size in sizes.items() if size == max(sizes.values())]
    if len(widest) != 1:
        known = ", ".join(sizes) or "none"
        raise FlowError(f"{program.path}: name the flow that is meant; flows: {known}")
    return widest[0]


def _workers(flow: Flow, work: Work, lanes: Mapping[str, int] | None) -> dict[str, int]:
    """Workers of the lanes that a flow is on. Others of the program may be given too."""
    workers = settled_workers(flow.lanes.values(), lanes)
    return {lane: workers[lane] for lane in work.per_lane}


def _room(plan: Plan) -> int:
    """How many rows the caches and the state of a flow have room for."""
    limits = [spec.dim.max for spec in plan.caches.values()]
    return min([*limits, plan.limit or _MANY * plan.size], default=0)


def _in_ratio(work: Work, lanes: Mapping[str, int], ratio: Sequence[float]) -> Work:
    order = [lane for lane in lanes if lane in work.per_lane]
    order += sorted(set(work.per_lane) - set(order), key=lambda lane: (lane == CPU, lane))
    if len(ratio) != len(order):
        raise FlowError(
            f"a ratio of {len(ratio)} numbers, and the flow is on {len(order)} lanes: "
            f"{', '.join(order)}"
        )
    each = {lane: part / work.lanes.count(lane) for lane, part in zip(order, ratio, strict=True)}
    return evolve(work, seconds=tuple(each[lane] for lane in work.lanes))


def _as_it_was(tasks: Tasks, flow: Flow, spans: Sequence[Span]) -> Work:
    """The tasks of a run, with the times that they took in it."""
    took = {(span.piece.number, span.step): span.seconds for span in spans}
    seconds = (took[piece.number, step] for step, piece in map(tasks.at, range(len(tasks))))
    return evolve(make_work(tasks, flow.lanes), seconds=tuple(seconds))


def _random_inputs(program: Program, plan: Plan, rows: int) -> dict[str, Any]:
    """Inputs that all steps which read them were verified with."""
    inputs = {}
    for name, cut in plan.cuts.items():
        shape = list(cut.value.shape or ())
        shape[cut.axis] = rows
        generator = torch.Generator().manual_seed(0)
        sizes = tuple(map(int, shape))
        inputs[name] = random_tensor(cut.value.dtype, sizes, _range(program, plan, name), generator)
    return inputs


def _range(program: Program, plan: Plan, name: str) -> tuple[int, int] | None:
    ranges = [
        program[step.method].ranges[own]
        for step in plan.steps
        for own, source in step.inputs
        if source == name and own in program[step.method].ranges
    ]
    return (max(r[0] for r in ranges), min(r[1] for r in ranges)) if ranges else None
