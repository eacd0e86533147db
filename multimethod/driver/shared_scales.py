"""One tensor, one scale: what flows from method to method, and state that methods share.

All ends of methods where one tensor goes in or out are calibrated with the range that it has over
all of them together, so that they are quantized alike; what still differs is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeGuard

import attrs

from mmpack.multimethod.compile.calls import Examples
from mmpack.multimethod.compile.quantize import from_plain
from mmpack.multimethod.compile.state import State
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.scale import End, disagreement

Place = tuple[str, End]
"""A method and an end of it."""
Together = tuple[tuple[Place, ...], ...]
"""Groups of places that one tensor passes."""


def one_tensor(plans: Iterable[Plan], state: State, calibrated: Collection[str]) -> Together:
    """The places that one tensor passes: what a step gives and later ones take, what is appended
    to a cache and read from it (flows that have a cache in common share it), and shared state.

    calibrated: the methods that count. A float one between two others keeps nobody to a scale.
    """
    groups = _Groups(calibrated)
    for plan in plans:
        values: dict[str, object] = {}
        for step in plan.steps:
            for name, source in step.inputs:
                if source in plan.caches:
                    given: object = ("cache", source)
                else:
                    given = values.get(source, ("flow", plan.name, source))
                for method in step.methods:
                    groups.join(given, (method, ("input", name)))
            for name, cache in step.appends:
                groups.join(("cache", cache), (step.method, ("output", name)))
            for name, target in step.outputs:
                values[target] = (step.method, ("output", name))
                for method in step.methods[1:]:
                    groups.join(values[target], (method, ("output", name)))
    for buffer, methods in state.shared.items():
        for method in methods:
            groups.join(("buffer", buffer), (method, ("state", buffer)))
    return groups.places()


def with_common_ranges(examples: Examples, together: Together) -> Examples:
    """The examples, every end that was recorded with the range of all ends of its tensor."""
    ranges = {name: dict(ends) for name, ends in examples.ranges.items()}
    for places in together:
        known = [(m, e) for m, e in places if e in ranges.get(m, {})]
        if known:
            low = min(ranges[method][end][0] for method, end in known)
            high = max(ranges[method][end][1] for method, end in known)
            for method, end in known:
                ranges[method][end] = (low, high)
    return attrs.evolve(examples, ranges=ranges)


def require_one_scale(together: Together, figures: Mapping[str, Mapping[str, object]]) -> None:
    """Raise CompileError, naming two methods and their scales, for every tensor that two ends
    quantize differently. figures: what is known of each method's object."""
    scales = {
        name: {(kind, end): found for kind, end, found in from_plain(known.get("scales", ()))}
        for name, known in figures.items()
    }
    wrong = []
    for places in together:
        found = [(place, s) for place in places for s in scales[place[0]].get(place[1], ())]
        if differing := disagreement(found):
            (first, one), (second, two) = differing
            wrong.append(
                f"{_named(first)} and {_named(second)} are one tensor, and are quantized "
                f"differently: with {one}, and with {two}"
            )
    if wrong:
        raise CompileError(
            "\n".join(wrong) + "\ngive one of the two methods another precision, such as a float "
            "one, or cut the model elsewhere"
        )


def _named(place: Place) -> str:
    method, (kind, name) = place
    return f"{kind} {name!r} of {method}"


def _is_place(thing: object) -> TypeGuard[Place]:
    """It is none if it is a cache, a buffer or what a flow takes: these are names only."""
    return isinstance(thing, tuple) and isinstance(thing[1], tuple)


class _Groups:
    """Disjoint sets (union-find)."""

    def __init__(self, calibrated: Collection[str]) -> None:
        self._calibrated = calibrated
        self._parent: dict[object, object] = {}

    def _root(self, thing: object) -> object:
        self._parent.setdefault(thing, thing)
        while self._parent[thing] != thing:
            thing = self._parent[thing]
        return thing

    def join(self, given: object, place: Place) -> None:
        if place[0] in self._calibrated:
            self._parent[self._root(place)] = self._root(given)

    def places(self) -> Together:
        """The sets of more than one place, in the order in which they were met."""
        sets: dict[object, list[Place]] = {}
        for thing in self._parent:
            if _is_place(thing) and thing[0] in self._calibrated:
                sets.setdefault(self._root(thing), []).append(thing)
        return tuple(tuple(places) for places in sets.values() if len(places) > 1)
