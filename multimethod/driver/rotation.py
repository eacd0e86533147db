"""Methods that share keys must turn them alike.

A wrapper with the option `rotation` (see `mmpack.wrappers`) makes or takes keys that are turned by
a matrix. Two methods of one layer, say its prefill and its decoding, reach one cache, also where
it is the caller who owns it; one that turns and one that does not would each be right alone, and
wrong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmpack.multimethod.compile.model import model_error
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.spec import SpecFile


def require_one_rotation(
    spec_file: SpecFile, units: Mapping[str, Unit], plans: Iterable[Plan]
) -> None:
    """Raise ModelError, with the spec's line, unless all methods of a module, and the two ends of
    every edge and cache of the flows, say the same `rotation`. What has no such option may do
    anything."""
    for reader, giver, what in [*_of_one_module(units), *_of_one_cache(plans)]:
        if not (_has(units[reader]) and _has(units[giver])):
            continue
        here, there = _rotation(units[reader]), _rotation(units[giver])
        if here != there:
            message = (
                f"{reader} has rotation {here or 'none'}, {giver} has {there or 'none'}, and "
                f"both {what}: give both the same `rotation`"
            )
            raise model_error(spec_file, ("methods", reader), message)


def _of_one_module(units: Mapping[str, Unit]) -> Iterable[tuple[str, str, str]]:
    first: dict[str, str] = {}
    for name, unit in units.items():
        if _has(unit):
            before = first.setdefault(unit.spec.module, name)
            yield name, before, f"are cut from {unit.spec.module or 'the model'}"


def _of_one_cache(plans: Iterable[Plan]) -> Iterable[tuple[str, str, str]]:
    """Every method that takes a value or cache, beside those that give it. A cache of one name is
    one cache in all flows."""
    writers: dict[str, list[str]] = {}
    readers: dict[str, list[str]] = {}
    for plan in plans:
        givers: dict[str, str] = {}
        for step in plan.steps:
            for _, cache in step.appends:
                writers.setdefault(cache, []).append(step.method)
            for _, source in step.inputs:
                if source in plan.caches:
                    readers.setdefault(source, []).append(step.method)
                elif source in givers:
                    yield step.method, givers[source], f"reach {source!r} of flow {plan.name!r}"
            givers.update({target: step.method for _, target in step.outputs})
    for cache, writing in writers.items():
        for method in [*writing[1:], *readers.get(cache, ())]:
            yield method, writing[0], f"reach the cache {cache!r}"


def _has(unit: Unit) -> bool:
    return hasattr(unit.module.module, "rotation")


def _rotation(unit: Unit) -> str | None:
    rotation: str | None = getattr(unit.module.module, "rotation", None)
    return rotation
