"""Schedules for people: what the policies make of a flow, what a run was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmpack.multimethod.errors import counted
from mmpack.multimethod.report.tables import Fitted

if TYPE_CHECKING:
    from mmpack.multimethod.driver.pipeline import Comparison, Traced


def comparison_title(found: Comparison) -> str:
    """The flow, and what there is to do on which lane."""
    lanes = (
        f"{lane} ({counted(found.workers[lane], 'worker')}) {_time(found, seconds)}"
        for lane, seconds in found.work.per_lane.items()
    )
    return (
        f"flow {found.flow}: {counted(found.pieces, 'piece')}, {counted(len(found.work), 'call')}; "
        f"{', '.join(lanes)}"
    )


def comparison_table(found: Comparison) -> Fitted:
    """One row a policy: how long it takes all in all, how much of that is more than the lower
    bound, and the share of each lane's time that it stands idle."""
    bare = ["", *("" for _ in found.work.per_lane)]
    rows = [
        [
            schedule.policy,
            _time(found, schedule.makespan),
            _over(found, schedule.makespan),
            *(_share(schedule.bubble(lane)) for lane in found.work.per_lane),
        ]
        for schedule in found.schedules
    ]
    if found.optimum is not None:
        rows.append(
            ["optimum", _time(found, found.optimum), _over(found, found.optimum), *bare[1:]]
        )
    rows.append(["lower bound", _time(found, found.bound), *bare])
    titles = ["policy", "makespan", "over bound", *(f"{n} idle" for n in found.work.per_lane)]
    return Fitted(
        {title: [row[column] for row in rows] for column, title in enumerate(titles)},
        right=titles[1:],
    )


def comparison_choice(found: Comparison) -> str:
    return f"out-of-order takes {found.chosen}"


def traced_summary(traced: Traced) -> str:
    """How long a run took, against the least that its calls need."""
    idle = ", ".join(f"{lane} {_share(share)}" for lane, share in traced.bubbles.items())
    return (
        f"flow {traced.flow}, {counted(traced.rows, 'row')}, {traced.schedule}: "
        f"{traced.seconds * 1e3:.2f} ms in {counted(len(traced.spans), 'call')}, "
        f"{traced.seconds / traced.bound:.2f} times the lower bound; idle: {idle}"
    )


def _time(found: Comparison, seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if found.timed else f"{seconds:.4g}"


def _over(found: Comparison, seconds: float) -> str:
    return f"{seconds / found.bound - 1:.1%}" if found.bound else "–"


def _share(share: float) -> str:
    return f"{max(share, 0.0):.1%}"
