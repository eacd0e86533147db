"""Which memory of a method is state: what must survive from one call to the next.

ExecuTorch says so in three ways: a tensor in memory 2 (planned with `share_mutable_buffers`),
a planned tensor with a name (`emit_mutable_buffer_names`) or with initial data. And where a
program says nothing, its instructions do: a planned tensor that is no input and is read before
anything in the method writes it can only be state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from attrs import define, field

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.check_calls import VIEW, nbytes
from mmpack.multimethod.link.schema import (
    DelegateCall,
    ExecutionPlan,
    KernelCall,
    MoveCall,
    OptionalTensorList,
    Tensor,
    TensorList,
)

WORK, STATE = 1, 2
"""Memory for activations, which all methods may share; memory that outlives a call."""

WRITE_BACK = "aten::copy_"


@define
class Region:
    """A piece of a method's memory that is state: a buffer and all tensors that lie in it.

    anchor: the tensor that is the whole buffer; None for a block of which only the size is
    known. name: the buffer's name in the model, "" if the program does not tell. guess: it is
    only the instructions that make it state.
    """

    method: str
    file: int
    name: str
    memory: int
    offset: int
    size: int
    anchor: Tensor | None
    guess: bool = False
    tensors: list[Tensor] = field(factory=list)

    @property
    def end(self) -> int:
        return self.offset + self.size


def find_state(plan: ExecutionPlan, method: str, file: int) -> tuple[list[Region], bool]:
    """The regions of one method, in the order of its values, and whether they explain all of
    memory 2: if not, only `whole_state` keeps it as it is.

    Raises LinkError for memory above 2 and for state that overlaps something else.
    """
    sizes = plan.non_const_buffer_sizes or ()
    if len(sizes) > STATE + 1 or plan.non_const_buffer_device:
        raise LinkError(
            f"method {method!r}: uses {len(sizes) - 1} memories or a device's; "
            "mmpack lays out memories 1 and 2 of the host only"
        )
    planned = _planned(plan)
    hidden = _read_before_written(plan)
    regions: list[Region] = []
    met: set[tuple[int, int, int, str]] = set()
    for tensor in planned:
        allocation = tensor.allocation_info
        assert allocation is not None
        name = _name(tensor)
        place = (allocation.memory_id, allocation.offset, nbytes(tensor), name)
        told = name or tensor.data_buffer_idx
        if place[2] and place not in met and (told or id(tensor) in hidden):
            met.add(place)
            guess = not told
            regions.append(Region(method, file, name, *place[:3], anchor=tensor, guess=guess))
    regions = _without_views(_without_wrong_guesses(regions, planned))
    return regions, _gather(regions, planned, method)


def whole_state(plan: ExecutionPlan, method: str, file: int) -> list[Region]:
    """All of a method's memory 2 as one region without a name."""
    sizes = plan.non_const_buffer_sizes or ()
    if len(sizes) <= STATE or not sizes[STATE]:
        return []
    inside = [tensor for tensor in _planned(plan) if _memory(tensor) == STATE]
    return [Region(method, file, "", STATE, 0, sizes[STATE], None, tensors=inside)]


def _planned(plan: ExecutionPlan) -> list[Tensor]:
    values = [value.val for value in plan.values or ()]
    return [v for v in values if isinstance(v, Tensor) and v.allocation_info is not None]


def _without_wrong_guesses(regions: list[Region], planned: list[Tensor]) -> list[Region]:
    """Planners never let anything overlap state, so what is overlapped was guessed wrongly."""
    kept = []
    for region in regions:
        spans = [_span(t) for t in planned if _memory(t) == region.memory]
        across = (
            start < region.end
            and region.offset < end
            and not region.offset <= start <= end <= region.end
            for start, end in spans
        )
        if not region.guess or region.memory == STATE or not any(across):
            kept.append(region)
    return kept


def _without_views(regions: list[Region]) -> list[Region]:
    """Leaves out unnamed regions inside of others: views of a buffer, read before written."""

    def inside(one: Region, other: Region) -> bool:
        covers = other.offset <= one.offset and one.end <= other.end
        larger = bool(other.name) or other.size > one.size or not other.guess
        return other is not one and other.memory == one.memory and covers and larger

    return [r for r in regions if not r.guess or not any(inside(r, other) for other in regions)]


def _gather(regions: list[Region], planned: list[Tensor], method: str) -> bool:
    """Gives each region the tensors in it; False if memory 2 is not made of named buffers."""
    clear = all(region.name for region in regions if region.memory == STATE)
    for memory in (WORK, STATE):
        ordered = sorted((r for r in regions if r.memory == memory), key=lambda r: r.offset)
        for one, other in itertools.pairwise(ordered):
            if one.end > other.offset and memory == WORK:
                raise LinkError(
                    f"method {method!r}: buffers {one.name!r} and {other.name!r} overlap in memory"
                )
            clear &= one.end <= other.offset
    for tensor in planned:
        start, end = _span(tensor)
        if start == end:
            continue
        homes = [r for r in regions if r.memory == _memory(tensor)]
        touched = [r for r in homes if start < r.end and r.offset < end]
        inside = [r for r in touched if r.offset <= start and end <= r.end]
        if inside:
            inside[0].tensors.append(tensor)
        elif _memory(tensor) == STATE:
            clear = False
        elif touched:
            raise LinkError(
                f"method {method!r}: state {touched[0].name!r} overlaps other values in memory 1"
            )
    return clear


def _span(tensor: Tensor) -> tuple[int, int]:
    offset = tensor.allocation_info.offset if tensor.allocation_info else 0
    return offset, offset + nbytes(tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.allocation_info.memory_id if tensor.allocation_info else 0


def _name(tensor: Tensor) -> str:
    extra = tensor.extra_tensor_info
    return (extra.fully_qualified_name or "") if extra else ""


def _read_before_written(plan: ExecutionPlan) -> set[int]:
    """ids of planned tensors that a kernel reads and that nothing before it wrote.

    A kernel's arguments end with what it returns; where these are also its out arguments, they
    come twice in a row (`…, out, out`) and are only written. What a delegate does with its
    arguments is not told: it counts as writing them, unless `copy_`, which is how a method's
    last word on a buffer is written back, comes later.
    """
    values = [value.val for value in plan.values or ()]
    written = {id(values[index]) for index in plan.inputs or ()}
    delegated: set[int] = set()
    hidden: set[int] = set()
    for instruction in (i for chain in plan.chains or () for i in chain.instructions or ()):
        call = instruction.instr_args
        if isinstance(call, DelegateCall):
            delegated |= {id(t) for t in _tensors(values, call.args or ())} - written
        elif isinstance(call, MoveCall):
            written.add(id(values[call.move_to]))
        elif isinstance(call, KernelCall):
            name, arguments = (plan.operators or [])[call.op_index].name, call.args or ()
            reads = arguments[: len(arguments) - (2 * _outs(arguments) or name == VIEW)]
            for tensor in _tensors(values, reads):
                known = written if name == WRITE_BACK else written | delegated
                if tensor.allocation_info is not None and id(tensor) not in known:
                    hidden.add(id(tensor))
            written |= {id(t) for t in _tensors(values, arguments)}
    return hidden


def _outs(arguments: tuple[int, ...]) -> int:
    """How many out arguments a kernel has, each of them also one of its results."""
    for count in range(1, len(arguments) // 2 + 1):
        if arguments[-2 * count : -count] == arguments[-count:]:
            return count
    return 0


def _tensors(values: Sequence[object], indices: tuple[int, ...]) -> Iterator[Tensor]:
    for index in indices:
        value = values[index]
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, TensorList | OptionalTensorList):
            yield from _tensors(values, tuple(i for i in value.items or () if i >= 0))
