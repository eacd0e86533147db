"""A conversation: how much of it flows have read, and what they keep of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field
from torch import Tensor

from mmpack.multimethod.flow.caches import memory
from mmpack.multimethod.flow.inputs import wrong
from mmpack.multimethod.flow.plan import Plan


@define
class Context:
    """What runs of a program's flows have in common: how many rows were fed so far, and the
    caches, each with room for its dim's maximum. A new context is a new conversation.

    state: each buffer of the program that steps keep rows in -> the last call that reached it when
    the context was fed. There is one of each, so a context goes on only as long as these are its.
    """

    position: int = 0
    caches: dict[str, Tensor] = field(factory=dict)
    state: dict[str, int] = field(factory=dict)


def require_own(plan: Plan, context: Context, now: Mapping[str, int]) -> None:
    """A context that was fed by other flows must have exactly the caches and the state of this
    one: rows would be missing in what only one of them fills. The state must hold its rows."""
    _require_own_state(plan, context, now)
    has, wanted = set(context.caches), set(plan.caches)
    if context.position and has != wanted:
        raise wrong(
            plan,
            f"this context was fed with caches {', '.join(sorted(has)) or 'none'}, "
            f"expected {', '.join(sorted(wanted)) or 'none'}",
        )
    for name in has & wanted:
        cache, (shape, dtype) = context.caches[name], memory(plan.caches[name])
        if list(cache.shape) != shape or cache.dtype is not dtype:
            raise wrong(
                plan,
                f"cache {name!r} of this context is {list(cache.shape)} {cache.dtype}, as "
                f"another flow made it, and must be {shape} {dtype} here",
            )


def _require_own_state(plan: Plan, context: Context, now: Mapping[str, int]) -> None:
    if not context.position:
        return
    if context.state.keys() != plan.state.keys():
        raise wrong(
            plan,
            f"this context was fed with state {_listed(context.state)}, expected "
            f"{_listed(plan.state)}",
        )
    for buffer, call in context.state.items():
        if now[buffer] != call:
            since = (
                "the program was reset"
                if now[buffer] == 0
                else "another run, or a call of a method, wrote to it"
            )
            raise wrong(
                plan,
                "the rows of this context are no longer in the program's state: "
                f"{since} since (buffer {buffer!r}). A program holds the state of one context "
                "at a time: feed all rows again with a fresh Context, or load the program once "
                "for each",
            )


def require_room(plan: Plan, context: Context, length: int) -> None:
    limit = plan.limit
    if limit is not None and context.position + length > limit:
        raise wrong(
            plan,
            f"{context.position} rows so far and {length} more do not fit: its steps with "
            f"state take positions 0 to {limit - 1}",
        )
    for name, spec in plan.caches.items():
        if context.position + length > spec.dim.max:
            raise wrong(
                plan,
                f"{context.position} rows so far and {length} more do not fit into cache "
                f"{name!r} ({spec.dim})",
            )


def rewind(plan: Plan, context: Context, position: int) -> None:
    """Forget what a run that failed has fed: caches are zero beyond what they hold."""
    context.position = position
    for name, spec in plan.caches.items():
        if name in context.caches:
            rest = spec.dim.max - position
            context.caches[name].narrow(spec.axis, position, rest).zero_()


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "none"
