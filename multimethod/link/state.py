"""Where the state of a linked program lives: memory 2, laid out anew for all methods together.

Every input laid out its own state from offset 0. Here each buffer gets a slot of its own:

    declared shared        one slot for all methods that name it; they must agree on dtype,
                           shape and initial data
    declared private       kept apart by file
    of one method only     a slot of its own
    of several methods of  the slots that the file had, so that what its author made them share
    one file               stays shared
    of several files       LinkError, as this would be a guess

State that a file left in memory 1, where the next method's activations would overwrite it,
moves here too. Memory 2 that is not made of named buffers moves as one block per file.

The runtime copies initial data into a slot whenever a method that uses it is loaded: load all
methods that share such a buffer before the first call.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from attrs import define, field, frozen

from mmpack.multimethod.errors import LinkError, nearest
from mmpack.multimethod.link.manifest import StateRecord
from mmpack.multimethod.link.schema import AllocationDetails, ExecutionPlan, ScalarType
from mmpack.multimethod.link.share import external
from mmpack.multimethod.link.state_find import STATE, WORK, Region, find_state, whole_state

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
    """A place in the common memory, and the regions that lie there."""

    shared: bool
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
    slots: dict[Hashable, Slot] = {}
    for region in regions:
        key, shared = _key(region, regions, rule, paths)
        slots.setdefault(key, Slot(shared)).regions.append(region)
    end = 0
    for slot in slots.values():
        _check_agree(slot, initial)
        slot.offset, end = end, end + -(-slot.size // ALIGNMENT) * ALIGNMENT
        for region in slot.regions:
            _move(region, slot.offset)
    users = {method for slot in slots.values() for method in slot.methods}
    for _, method, plan in plans:
        sizes = [*(plan.non_const_buffer_sizes or (0,)), 0, 0][: STATE + 1]
        if method in users:
            sizes[STATE] = end
            plan.non_const_buffer_sizes = tuple(sizes)
    return tuple(_record(slot) for slot in slots.values())


def _regions(
    plans: Sequence[tuple[int, str, ExecutionPlan]], rule: StateRule, paths: Sequence[str]
) -> list[Region]:
    """The regions of all plans, where a file's memory 2 is named buffers or one block."""
    found = [(file, method, plan, *find_state(plan, method, file)) for file, method, plan in plans]
    blocks = {file for file, _, _, _, clear in found if not clear}
    made: list[Region] = []
    for file, method, plan, regions, _ in found:
        if file not in blocks:
            made += regions
            continue
        for region in regions:
            if region.memory == STATE and rule.says(region.name) == "shared":
                raise LinkError(
                    f"buffer {region.name!r} is declared shared, but memory 2 of "
                    f"{paths[file]} has more than named buffers in it and cannot be laid out anew"
                )
        made += [region for region in regions if region.memory == WORK]
        made += whole_state(plan, method, file)
    return made


def _check_patterns(rule: StateRule, regions: Sequence[Region]) -> None:
    names = {region.name for region in regions if region.name}
    for pattern in (*rule.shared, *rule.private):
        if not any(fnmatchcase(name, pattern) for name in names):
            known = nearest(pattern, names) or "; no method has a named buffer"
            raise LinkError(f"state {pattern!r}: no method has such a buffer{known}")


def _key(
    region: Region, regions: Sequence[Region], rule: StateRule, paths: Sequence[str]
) -> tuple[Hashable, bool]:
    """Regions of one key lie in one slot; and whether several methods are meant to meet there."""
    said = rule.says(region.name)
    alone = ("private", region.method, region.name, region.memory, region.offset)
    if said == "shared":
        return ("shared", region.name), True
    if region.anchor is None:
        return ("block", region.file), sum(r.file == region.file for r in regions) > 1
    namesakes = [r for r in regions if region.name and r.name == region.name]
    others = [r for r in namesakes if r.file != region.file]
    if others and not said:
        raise LinkError(
            f"buffer {region.name!r} is in method {region.method!r} of {paths[region.file]} and in "
            f"method {others[0].method!r} of {paths[others[0].file]}: say whether it is shared or "
            f"private: --share '{region.name}' makes it one memory, --private '{region.name}' "
            "keeps the files apart"
        )
    here = (region.file, region.offset, STATE)
    same = [r for r in namesakes if (r.file, r.offset, r.memory) == here]
    if region.memory == STATE and len({r.method for r in same}) > 1:
        return ("file", region.file, region.name, region.offset), True
    return alone, False


def _check_agree(slot: Slot, initial: Mapping[tuple[int, int], int]) -> None:
    """Raises LinkError unless all regions of a named slot are the same buffer."""
    first, *rest = slot.regions
    for other in rest:
        if first.anchor is None or other.anchor is None:
            continue
        for what, one, two in (
            ("dtypes", _dtype(first), _dtype(other)),
            ("shapes", _shape(first), _shape(other)),
            ("dim orders", list(first.anchor.dim_order or ()), list(other.anchor.dim_order or ())),
            ("initial data", _initial(first, initial), _initial(other, initial)),
        ):
            if one != two:
                raise LinkError(
                    f"buffer {first.name!r} is shared, but its {what} are not the same: "
                    f"{one} in method {first.method!r}, {two} in method {other.method!r}"
                )


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
        slot.shared,
        slot.methods,
        "data" if data else "zero",
    )
