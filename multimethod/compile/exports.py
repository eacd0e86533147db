"""Units -> exported programs, and what these tell: facts, which the cache keeps, so that a unit
that is known is not exported unless it must be lowered.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import frozen

from mmpack.multimethod.compile.alike import Alike, Family
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.export import Exported, export
from mmpack.multimethod.compile.fingerprint import Print
from mmpack.multimethod.compile.state import Touched
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.widen import kept_in_half
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.memory import give_back
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.progress import Progress
from mmpack.multimethod.signature import Signature

LIKE_ANOTHER = "like another"
"""What is noted of a unit that is of one structure with others, and made from what these are."""


@frozen
class Facts:
    """What exporting a unit tells: its whole signature, and the buffers that it touches."""

    signature: Signature
    touched: Touched


def known_facts(store: Cache, prints: Mapping[str, Print]) -> dict[str, Facts]:
    """What a cache knows of some units, by their names and fingerprints."""
    found = {name: store.facts(made.digest) for name, made in prints.items()}
    return {
        name: PLAIN.structure(facts, Facts) for name, facts in found.items() if facts is not None
    }


class Exports:
    """Exports units, each when its turn comes; all arguments are those of `objects.Compiler`."""

    def __init__(
        self,
        units: Mapping[str, Unit],
        names: Mapping[int, str],
        prints: Mapping[str, Print],
        store: Cache,
        progress: Progress,
        fresh: frozenset[str],
        alike: Alike | None,
    ) -> None:
        self._units = units
        self._names = names
        self._prints = prints
        self._store = store
        self._progress = progress
        self._fresh = fresh
        self._alike = alike
        self._exported: dict[str, Exported] = {}
        self._derived: dict[str, Facts] = {}

    def facts(self) -> dict[str, Facts]:
        """The facts of every unit, exporting those that the cache knows nothing of; of units of one
        structure, two."""
        self._progress.stage("export", len(self._units))
        prints = {n: key for n, key in self._prints.items() if n not in self._fresh}
        facts = known_facts(self._store, prints)
        for name in facts:
            self._progress.done(name, "cached")
        missing = [name for name in self._units if name not in facts]
        families = self._alike.families(facts, missing) if self._alike is not None else []
        waiting = {name: family for family in families for name in family.others}
        for name in [*(n for n in missing if n not in waiting), *waiting]:
            derived = self._derive(waiting[name], name, facts) if name in waiting else None
            if derived is not None:
                facts[name] = self._derived[name] = derived
            else:
                self._progress.start(name)
                made = self._exported[name] = self._export(self._units[name])
                facts[name] = _facts(made)
            self._store.put_facts(self._prints[name].digest, PLAIN.unstructure(facts[name]))
            self._progress.done(name, LIKE_ANOTHER if derived is not None else "")
        return {name: facts[name] for name in self._units}

    def _derive(self, family: Family, name: str, facts: Mapping[str, Facts]) -> Facts | None:
        """The first's facts as they are for another of its structure, if the second's are so."""
        if self._facts_in(family.first, family.second, facts) != facts[family.second]:
            return None
        return self._facts_in(family.first, name, facts)

    def _facts_in(self, first: str, name: str, facts: Mapping[str, Facts]) -> Facts | None:
        assert self._alike is not None
        touched = self._alike.touched_in(first, name, facts[first].touched)
        if touched is None:
            return None
        return Facts(attrs.evolve(facts[first].signature, method=name), touched)

    def take(self, name: str) -> Exported:
        """A unit exported, which is then the caller's alone."""
        return self._exported.pop(name, None) or self._export(self._units[name])

    def _export(self, unit: Unit) -> Exported:
        made = export(unit, self._names)
        derived = self._derived.get(unit.name)
        if derived is not None and derived != _facts(made):
            # Nobody is to meet them again.
            self._store.put_facts(self._prints[unit.name].digest, PLAIN.unstructure(_facts(made)))
            raise CompileError(
                f"{unit.name}: its outputs or buffers are not those of methods of the same code; "
                "build once more"
            )
        if kept_in_half(unit.module):
            give_back()  # the copies in float32 that it was exported with
        return made


def _facts(made: Exported) -> Facts:
    return Facts(made.signature, Touched(made.mutated, made.read))
