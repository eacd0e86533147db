"""How large a program's methods are, and how much they share.

with open_program("model.pte") as file:
    print(sizes(file).shared, "bytes are used more than once")
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from mmpack.multimethod.link.check_calls import external
from mmpack.multimethod.link.extents import (
    constant_extent,
    constant_sizes,
    delegate_extents,
    tensors,
)
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.integrity import PREFIX
from mmpack.multimethod.link.schema import ExecutionPlan
from mmpack.multimethod.link.xnnpack_blob import BACKEND, keys_of


@frozen
class MethodSize:
    """Bytes of delegate data, of constants and of named data (weights of its delegates) that one
    method reaches, each counted once."""

    delegates: int
    constants: int
    named: int = 0

    @property
    def total(self) -> int:
        return self.delegates + self.constants + self.named


@frozen
class Sizes:
    """Of one file, in bytes.

    methods: per method. Which named data a method uses stands inside its delegates' data, which
    mmpack can read for XNNPACK only; named: those that no method is known to use.
    stored: what all of these take in the file, and in the one beside it that has what it keeps
        outside (`PteFile.needs`).
    shared: what they would take on top if every method had its own copy of what it uses.
    """

    methods: dict[str, MethodSize]
    named: int
    stored: int

    @property
    def shared(self) -> int:
        return sum(size.total for size in self.methods.values()) + self.named - self.stored


def sizes(file: PteFile) -> Sizes:
    """The sizes of a checked file, without mmpack's own blobs."""
    methods: dict[str, MethodSize] = {}
    unused = {key: file.segments[index] for key, index in file.named.items()}
    unused = {key: extent for key, extent in unused.items() if not key.startswith(PREFIX)}
    everything = list(unused.values())
    outside = set(file.needs)
    for plan in file.plans:
        delegates, constants = list(delegate_extents(file, plan)), _constants(file, plan)
        keys: set[str] = set()
        for delegate, extent in zip(plan.delegates or (), delegates, strict=True):
            if delegate.id == BACKEND:
                keys |= keys_of(file, extent)
        named = [file.segments[file.named[key]] for key in keys if key in file.named]
        tensors_there = _outside(file, plan)
        methods[plan.name or ""] = MethodSize(
            covered(delegates),
            covered(constants) + _together(file, tensors_there),
            covered(named) + _together(file, keys & file.needs.keys()),
        )
        everything += [*delegates, *constants]
        unused = {key: extent for key, extent in unused.items() if key not in keys}
        outside -= keys | tensors_there
    stored = covered(everything) + _together(file, file.needs)
    return Sizes(methods, covered(unused.values()) + _together(file, outside), stored)


def covered(extents: Iterable[Extent]) -> int:
    """Bytes that lie in at least one of the extents."""
    total = end = 0
    for extent in sorted(extents, key=lambda e: (e.offset, e.size)):
        total += max(0, extent.offset + extent.size - max(end, extent.offset))
        end = max(end, extent.offset + extent.size)
    return total


def _outside(file: PteFile, plan: ExecutionPlan) -> set[str]:
    """The keys of constants that a plan has outside, as far as their sizes are known."""
    extras = [t.extra_tensor_info for t in tensors([plan]) if external(t)]
    return {e.fully_qualified_name or "" for e in extras if e} & file.needs.keys()


def _together(file: PteFile, keys: Iterable[str]) -> int:
    """Bytes that some keys have outside; several may stand for the same, which only the file itself
    tells."""
    if file.data is None:
        return sum(file.needs[key] for key in keys)
    return covered(file.data.extents[key] for key in keys)


def _constants(file: PteFile, plan: ExecutionPlan) -> set[Extent]:
    used = constant_sizes([plan])
    return {constant_extent(file, index, size) for index, size in used.items()}
