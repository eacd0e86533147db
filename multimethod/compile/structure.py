"""The structure of a unit: what is left of its fingerprint when its name, the values of its tensors
and their names in the model are taken out. Thirty layers of a decoder have one.

Which of its tensors are one tensor, which share memory and which are merely equal stays in: equal
data are stored once, so two layers in which other weights are equal are lowered to other objects.
So does the order of the names, which something may be sorted by, and whether a buffer is all zero,
which then takes no room.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from mmpack.multimethod.compile.fingerprint import Fingerprints, digest
from mmpack.multimethod.compile.rehearse import names_in_model
from mmpack.multimethod.compile.state import Touched
from mmpack.multimethod.compile.unit import Unit


@frozen(eq=False)
class Member:
    """A unit among those of its structure. tensors: by their names in its module; names: the same
    tensors' names in the model."""

    unit: Unit
    tensors: Mapping[str, torch.Tensor]
    names: Mapping[str, str]

    def names_in(self, other: Member) -> dict[str, str]:
        """Names that an object or facts of this unit hold -> what they are in another's."""
        one, two = self.unit.name, other.unit.name
        # As a tensor is called that only the method has, see `names_in_model`.
        alone = [name.removeprefix("module.") for name in self.tensors]
        own = {f"{one}:{name}": f"{two}:{name}" for name in alone}
        return {**own, **{self.names[n]: other.names[n] for n in self.tensors}, one: two}

    def touched_in(self, other: Member, touched: Touched) -> Touched | None:
        """The buffers that another unit touches, if this one touches those; None if one of them
        has no name in the model that could be told."""
        names = self.names_in(other)
        if not touched.mutated | touched.read <= names.keys():
            return None
        mutated = frozenset(names[name] for name in touched.mutated)
        return Touched(mutated, frozenset(names[name] for name in touched.read))


def members(units: Mapping[str, Unit], names: Mapping[int, str]) -> dict[str, Member]:
    """Units with their tensors. `names` maps id(tensor) to its name in the model."""
    made = {}
    for name, unit in units.items():
        tensors = dict(
            [
                *unit.module.named_parameters(remove_duplicate=False),
                *unit.module.named_buffers(remove_duplicate=False),
            ]
        )
        known = names_in_model(unit, names)
        own = {key: known[id(tensor)] for key, tensor in tensors.items()}
        made[name] = Member(unit, tensors, own)
    return made


def structure(member: Member, prints: Fingerprints) -> str:
    """A hash: units that have the same differ in nothing but names and values of tensors."""
    tensors = list(member.tensors.values())
    kept = member.unit.module.state_dict(keep_vars=True).keys()
    order = sorted(set(member.names.values()))
    described = [
        [
            name,
            type(tensor).__name__,
            str(tensor.dtype),
            list(tensor.shape),
            list(tensor.stride()),
            tensor.storage_offset(),
            tensor.requires_grad,
            name in kept,
            order.index(member.names[name]),
            id(tensor) in prints.names,
            isinstance(tensor, torch.nn.Parameter) or bool(torch.count_nonzero(tensor)),
        ]
        for name, tensor in member.tensors.items()
    ]
    same = [
        _pattern(id(tensor) for tensor in tensors),
        _pattern(tensor.untyped_storage().data_ptr() for tensor in tensors),
        _pattern(prints.describer.bytes(tensor) for tensor in tensors),
    ]
    return digest([prints.common(member.unit), described, same])


def _pattern(values: Iterable[Hashable]) -> list[int]:
    """Equal numbers where values are equal."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def groups(found: Mapping[str, Member], prints: Fingerprints) -> list[Sequence[str]]:
    """Names of units of one structure, in their order; those that are alone are left out."""
    together: dict[str, list[str]] = {}
    for name, member in found.items():
        together.setdefault(structure(member, prints), []).append(name)
    return [names for names in together.values() if len(names) > 1]
