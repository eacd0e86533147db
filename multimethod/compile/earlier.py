"""What the cache tells of methods that were built before: what that took, and in what they differ
from what is to be built now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.costs import Cost
from mmpack.multimethod.compile.ingredients import Parts, differences
from mmpack.multimethod.plain import PLAIN


@frozen
class Earlier:
    """An object in the cache. used: when it was last of use, seconds since 1970."""

    key: str
    used: float
    parts: Parts
    cost: Cost


def told(parts: Parts, cost: Cost) -> dict[str, Any]:
    """What is kept beside an object, for `earlier`."""
    return {"parts": parts, "cost": PLAIN.unstructure(cost)}


def earlier(store: Cache) -> dict[str, list[Earlier]]:
    """The objects of a cache by method, what was of use last first."""
    found: dict[str, list[Earlier]] = {}
    for key, used, record in store.records():
        if "parts" in record and "cost" in record:
            cost = PLAIN.structure(record["cost"], Cost)
            made = Earlier(key, used, record["parts"], cost)
            found.setdefault(record.get("method", ""), []).append(made)
    return {name: sorted(made, key=lambda one: -one.used) for name, made in found.items()}


def last_costs(found: Mapping[str, Sequence[Earlier]]) -> dict[str, Cost]:
    """What each method took when it was last lowered."""
    costs = {}
    for name, made in found.items():
        measured = [one.cost for one in made if one.cost.memory is not None]
        costs[name] = measured[0] if measured else made[0].cost
    return costs


def reasons(store: Cache, key: str, parts: Parts, found: Sequence[Earlier]) -> list[str]:
    """Why an object is not in the cache, which has `found` of its method: in what the nearest of
    these differs."""
    if store.has_files_of(key):
        return ["its object in the cache is damaged"]
    if not found:
        return ["the cache has no object of this method: it was not built yet, or was pruned"]
    told = [differences(one.parts, parts) for one in found]
    fewest = min(told, key=len)
    return fewest or ["something in its fingerprint that is not told apart here"]
