"""Units of one structure: two are exported and lowered, and the others' objects are the first's
with other weights.

`driver` gives what changes the weights of an object (`link.rebind`). That the first with the
weights of the second is the second, byte by byte, is found out anew for every structure in every
build; where it is not, all are lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from mmpack.multimethod.compile.fingerprint import Fingerprints
from mmpack.multimethod.compile.precision import least_sqnr
from mmpack.multimethod.compile.state import Touched
from mmpack.multimethod.compile.structure import Member, groups, members
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.weights import ModuleWeights


class Template(Protocol):
    """See `link.rebind.Template`."""

    def write(self, weights: ModuleWeights, names: Mapping[str, str], output: Path) -> bool: ...

    def close(self) -> None: ...


class Learn(Protocol):
    """See `link.rebind.learn`."""

    def __call__(
        self,
        first: Path,
        second: Path,
        weights: ModuleWeights,
        others: ModuleWeights,
        names: Mapping[str, str],
        scratch: Path,
    ) -> Template | None: ...


@frozen
class Family:
    """Units of one structure: two that tell what the others' objects are, and these."""

    first: str
    second: str
    others: tuple[str, ...]


@frozen(eq=False)
class Alike:
    """Which of some units are of one structure. Quantized ones are left out: their data are made
    of their weights, and of those of others."""

    units: Mapping[str, Unit]
    prints: Fingerprints
    learn: Learn
    _weights: dict[str, ModuleWeights] = field(factory=dict, init=False)

    @cached_property
    def _members(self) -> dict[str, Member]:
        plain = {name: unit for name, unit in self.units.items() if least_sqnr(unit) is None}
        return members(plain, self.prints.names)

    @cached_property
    def _groups(self) -> list[Sequence[str]]:
        return groups(self._members, self.prints)

    @cached_property
    def firsts(self) -> dict[str, str]:
        """Every unit that is of one structure with one before it -> the first of these."""
        return {name: group[0] for group in self._groups for name in group[1:]}

    def families(
        self,
        made: Collection[str],
        missing: Collection[str],
        same: Callable[[str, str], bool] = lambda one, other: True,
    ) -> list[Family]:
        """Families with all those units of `missing` that need not be made as the others are.
        Those of `made` are there already. same: what two of one structure must have in common
        besides, asked of the first and each other."""
        found = []
        for group in self._groups if missing else ():
            there = [name for name in group if name in made]
            wanted = [name for name in group if name in missing]
            first = (there or wanted)[0]
            there, wanted = (
                [name for name in names if name != first and same(first, name)]
                for names in (there, wanted)
            )
            if there or wanted:
                second = max(there or wanted, key=lambda name: self._apart(first, name))
                others = tuple(name for name in wanted if name != second)
                if others:
                    found.append(Family(first, second, others))
        return found

    def touched_in(self, one: str, other: str, touched: Touched) -> Touched | None:
        """See `Member.touched_in`."""
        return self._members[one].touched_in(self._members[other], touched)

    def buffers_in(self, one: str, other: str, buffers: frozenset[str]) -> frozenset[str]:
        """Names of one unit's buffers -> those of another's."""
        names = self._members[one].names_in(self._members[other])
        return frozenset(names.get(buffer, buffer) for buffer in buffers)

    def template(self, family: Family, paths: Mapping[str, Path], scratch: Path) -> Template | None:
        """What the objects of the two tell, see `learn`."""
        one, two = family.first, family.second
        names = self._members[one].names_in(self._members[two])
        mine, others = self._weights_of(one), self._weights_of(two)
        return self.learn(paths[one], paths[two], mine, others, names, scratch)

    def write(self, template: Template, first: str, name: str, output: Path) -> bool:
        """Write the object of a unit, see `Template.write`."""
        names = self._members[first].names_in(self._members[name])
        return template.write(self._weights_of(name), names, output)

    def _apart(self, one: str, other: str) -> int:
        """How many tensors of two units differ."""
        mine, others = self._weights_of(one), self._weights_of(other)
        return sum(mine.digest(key) != others.digest(key) for key in mine.tensors())

    def _weights_of(self, name: str) -> ModuleWeights:
        if name not in self._weights:
            tensors = self._members[name].tensors
            self._weights[name] = ModuleWeights(tensors, self.prints.describer)
        return self._weights[name]
