"""Which methods of a program have something in common: state, for which they take turns, or
weights, which XNNPACK then packs once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from mmpack.multimethod.runtime.facts import Facts


def state_groups(facts: Mapping[str, Facts]) -> dict[str, int]:
    """Methods with state -> a number that those have in common whose state overlaps, also by way
    of others."""
    spans = sorted((*span, name) for name, known in facts.items() for span in known.state)
    overlapping: list[tuple[str, str]] = []
    reach: dict[int, tuple[int, str]] = defaultdict(lambda: (0, ""))
    for memory, start, end, name in spans:
        until, last = reach[memory]
        overlapping.append((name, last if start < until else name))
        if end > until:
            reach[memory] = (end, name)
    return {n: number for number, group in enumerate(_joined(overlapping)) for n in group}


def weight_groups(facts: Mapping[str, Facts]) -> dict[str, int]:
    """Methods -> a number that those have in common that are to share packed weights, such as one
    layer's `chunk` and `one`.

    Methods that share them take turns in XNNPACK. Where that would have methods wait that have no
    weights in common (one of all layers beside one of each), each has its own copy, and so it is
    where they use the same bytes in different ways.
    """
    users: dict[str, list[str]] = defaultdict(list)
    for name, known in facts.items():
        for key in known.weights:
            users[key].append(name)
    pairs = ((names[0], name) for names in users.values() for name in names[1:])
    groups = [group for group in _joined(pairs) if _alike([facts[name] for name in group])]
    return {name: number for number, group in enumerate(groups) for name in group}


def _alike(methods: Sequence[Facts]) -> bool:
    """Whether every two have weights in common, and all use each of those in one way."""
    for one, other in combinations(methods, 2):
        common = one.weights.keys() & other.weights.keys()
        if not common:
            return False
        for key in common:
            if len(one.weights[key] | other.weights[key]) != 1:
                return False
    return True


def _joined(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """What is connected by pairs, each in the order in which it is met first."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            name = parents[name]
        return name

    for one, other in pairs:
        parents[root(one)] = root(other)
    groups: dict[str, list[str]] = {}
    for name in parents:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())
