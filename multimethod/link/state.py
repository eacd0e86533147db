"""Where the state of a linked program lives: memory 2, laid out anew for all methods together.

Every input laid out its own state from offset 0. Here each buffer gets a slot of its own:

    declared shared        one slot for all methods that name it; they must agree on dtype,
                           shape and initial data (and on scales: `state_scales.py`)
    declared private       kept apart by file
    of one method only     a slot of its own
    of several methods of  the slots that the file had, so that what its author made them share
    one file               stays shared
    of several files       LinkError, as this would be a guess

State that a file left in memory 1, where the next method's activations would overwrite it,
moves here too. Buffers of one file that overlap in its memory 2 move as one.

The runtime copies initial data into a slot whenever a method that uses it is loaded: load all
methods that share such a buffer before the first call.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from attrs import define, field, frozen

from mmpack.multimethod.errors import LinkError, nearest
from mmpack.multimethod.link.check_calls import external, nbytes
from mmpack.multimethod.link.manifest import StateRecord
from mmpack.multimethod.link.schema import AllocationDetails, ExecutionPlan, ScalarType
from mmpack.multimethod.link.state_find import STATE, Region, find_state, planned

ALIGNMENT = 16
"""Bytes, of every buffer: ExecuTorch's own."""


@frozen
class StateRule:
    """What the caller says about buffers: patterns of names as in a shell (`*.k_cache`)."""

    shared: Sequence[str] = ()
    private: Sequence[str] = ()

    def says(self, name: str) -> Literal["shared", "private", ""]:
        shared = [p for p in self.shared if name and fnmatchcase(name, p)]
        private = [p for p in self.private if name and fnmatchcase(name, p)]
        if shared and private:
            raise LinkError(
                f"buffer {name!r} is declared shared ({shared[0]!r}) and private ({private[0]!r})"
            )
        return "shared" if shared else "private" if private else ""


@define
class Slot:
    """A place in the common memory, and the regions that lie there. declared: they were said to
    be one buffer, so they must agree."""

    declared: bool
    regions: list[Region] = field(factory=list)
    offset: int = 0

    @property
    def size(self) -> int:
        return max(region.size for region in self.regions)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(region.method for region in self.regions))


def lay_out_state(
    plans: Sequence[tuple[int, str, ExecutionPlan]],
    rule: StateRule,
    paths: Sequence[str],
    initial: Mapping[tuple[int, int], int],
) -> tuple[StateRecord, ...]:
    """Moves the state of all plans to memory 2, in place, and says what is there.

    plans: (number of the input file, name of the method in the output, plan).
    paths: the input files, for messages. initial: (file, data_buffer_idx) -> blob, which tells
    equal initial data from unequal.
    """
    regions = _regions(plans, rule, paths)
    _check_patterns(rule, regions)
    _require_declared(regions, rule, paths)
    slots: dict[Hashable, Slot] = {}
    for region in regions:
        declared = rule.says(region.name) == "shared"
        slots.setdefault(_key(region, declared), Slot(declared)).regions.append(region)
    end = 0
    for slot in slots.values():
        if slot.declared:
            _check_agree(slot, initial)
        slot.offset, end = end, end + -(-slot.size // ALIGNMENT) * ALIGNMENT
        for region in slot.regions:
            _move(region, slot.offset)
    users = {method for slot in slots.values() for method in slot.methods}
    for _, method, plan in plans:
        if method in users:
            sizes = [*(plan.non_const_buffer_sizes or (0,)), 0, 0][:STATE]
            plan.non_const_buffer_sizes = (*sizes, end)
            for tensor in planned(plan, STATE):
                if not nbytes(tensor):  # its old place may be outside
                    tensor.allocation_info = AllocationDetails(STATE)
    return tuple(_record(slot) for slot in slots.values() if any(r.state for r in slot.regions))


def _regions(
    plans: Sequence[tuple[int, str, ExecutionPlan]], rule: StateRule, paths: Sequence[str]
) -> list[Region]:
    """The regions of all plans. LinkError for a buffer that is to be shared and has none of its
    own."""
    made: list[Region] = []
    for file, path in enumerate(paths):
        own = find_state(file, [(method, plan) for number, method, plan in plans if number == file])
        for name in [name for region in own for name in region.inside]:
            if rule.says(name) == "shared":
                raise LinkError(
                    f"buffer {name!r} of {path} lies over others, or inside of a larger one, in "
                    "its memory 2, and cannot be shared with other files"
                )
        made += own
    return made


def _check_patterns(rule: StateRule, regions: Sequence[Region]) -> None:
    names = {name for region in regions for name in (region.name, *region.inside) if name}
    for pattern in (*rule.shared, *rule.private):
        if not any(fnmatchcase(name, pattern) for name in names):
            known = nearest(pattern, names) or "; no method has a named buffer"
            raise LinkError(f"state {pattern!r}: no method has such a buffer{known}")


def _require_declared(regions: Sequence[Region], rule: StateRule, paths: Sequence[str]) -> None:
    """Raises LinkError that names every buffer that several files have and nobody spoke of."""
    first: dict[str, Region] = {}
    unsaid: dict[str, str] = {}
    for region in regions:
        name, met = region.name, first.setdefault(region.name, region)
        if name and met.file != region.file and name not in unsaid and not rule.says(name):
            unsaid[name] = (
                f"buffer {name!r} is in method {met.method!r} of {paths[met.file]} and in method "
                f"{region.method!r} of {paths[region.file]}: say whether it is shared or private: "
                f"--share '{name}' makes it one memory, --private '{name}' keeps the files apart"
            )
    if unsaid:
        raise LinkError("\n".join(unsaid.values()))


def _key(region: Region, declared: bool) -> Hashable:
    """Regions of one key lie in one slot."""
    if declared:
        return region.name
    if region.memory == STATE:
        return region.file, region.offset
    return region.file, region.offset, region.method


def _check_agree(slot: Slot, initial: Mapping[tuple[int, int], int]) -> None:
    """Raises LinkError unless all regions of a slot are the same buffer."""
    first, *rest = sorted(slot.regions, key=lambda region: region.anchor is None)
    for other in rest:
        for what, one, two in _compared(first, other, initial):
            if one != two:
                raise LinkError(
                    f"buffer {first.name!r} is shared, but its {what} are not the same: "
                    f"{one} in method {first.method!r}, {two} in method {other.method!r}"
                )


def _compared(
    one: Region, other: Region, initial: Mapping[tuple[int, int], int]
) -> Iterator[tuple[str, object, object]]:
    """What is held against each other, and what it is in both."""
    if one.anchor is None or other.anchor is None:
        yield "sizes in bytes", one.size, other.size
        return
    yield "dtypes", _dtype(one), _dtype(other)
    yield "shapes", _shape(one), _shape(other)
    yield "dim orders", list(one.anchor.dim_order or ()), list(other.anchor.dim_order or ())
    yield "initial data", _initial(one, initial), _initial(other, initial)


def _initial(region: Region, initial: Mapping[tuple[int, int], int]) -> str:
    if region.anchor is not None and external(region.anchor):
        return "values in another file"
    index = region.anchor.data_buffer_idx if region.anchor else 0
    return f"values (blob {initial[region.file, index]})" if index else "zeros"


def _dtype(region: Region) -> str:
    return ScalarType(region.anchor.scalar_type).name if region.anchor else "uint8"


def _shape(region: Region) -> list[int]:
    return list((region.anchor.sizes or ()) if region.anchor else (region.size,))


def _move(region: Region, offset: int) -> None:
    for tensor in region.tensors:
        old = tensor.allocation_info
        assert old is not None
        place = old.offset - region.offset + offset
        tensor.allocation_info = AllocationDetails(STATE, place & 0xFFFFFFFF, place >> 32)


def _record(slot: Slot) -> StateRecord:
    region = slot.regions[0]
    tensors = [tensor for r in slot.regions for tensor in r.tensors]
    data = any(tensor.data_buffer_idx or external(tensor) for tensor in tensors)
    return StateRecord(
        region.name or f"(unnamed, of {region.method})",
        _dtype(region),
        tuple(_shape(region)),
        slot.declared or len(slot.methods) > 1,
        slot.methods,
        "data" if data else "zero",
    )
