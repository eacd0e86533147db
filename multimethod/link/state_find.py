"""Where the state of a file's methods lies, in pieces that can be laid out anew.

In memory 1 that is what `state_tensors.py` finds. Memory 2 (`share_mutable_buffers`) is common to
the methods of a file and is kept whole, whatever is known of what is in it. Tensors that overlap,
in any method that sees the memory, are one region and keep their places in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.schema import ExecutionPlan, Tensor
from mmpack.multimethod.link.spans import Spans, span
from mmpack.multimethod.link.state_tensors import is_told, name_of, state_tensors

WORK, STATE = 1, 2
"""Memory for activations, which all methods may share; memory that outlives a call."""


@define
class Region:
    """A method's part of a piece of memory: `size` bytes at `offset`, and the tensors in them.

    name: of the buffer that is the whole region; "" if the program does not tell, or if there are
    more buffers in it, whose names are then `inside`. anchor: a tensor that is the whole region.
    state: something in it is known to be state. What is not (memory 2 that a planner used for
    activations) is kept apart all the same.
    """

    method: str
    file: int
    memory: int
    offset: int
    size: int
    name: str
    inside: tuple[str, ...]
    anchor: Tensor | None = None
    state: bool = False
    tensors: list[Tensor] = field(factory=list)


def find_state(file: int, plans: Sequence[tuple[str, ExecutionPlan]]) -> list[Region]:
    """The regions of one file's methods, given as (name, plan), in their order and that of their
    values.

    Raises LinkError for memory above 2 and for state that overlaps something else.
    """
    for method, plan in plans:
        _require_host(method, plan)
    common = _Memory(STATE, [tensor for _, plan in plans for tensor in planned(plan, STATE)])
    found: list[Region] = []
    for method, plan in plans:
        state = state_tensors(plan)
        work = _Memory(WORK, [tensor for tensor in planned(plan, WORK) if id(tensor) in state])
        for memory in (work, common):
            regions: dict[tuple[int, int], Region] = {}
            for tensor in planned(plan, memory.number):
                where = memory.spans.holding(tensor)
                if where is not None:
                    region = regions.setdefault(where, memory.region(where, method, file))
                    _add(region, tensor, id(tensor) in state)
            found += regions.values()
    return found


class _Memory:
    """The spans of a memory that are laid out anew, and the names of the buffers in each."""

    def __init__(self, number: int, tensors: Sequence[Tensor]) -> None:
        self.number = number
        self.spans = Spans(tensors)
        self._buffers: dict[tuple[int, int], dict[str, set[tuple[int, int]]]] = {}
        for tensor in tensors:
            where = self.spans.holding(tensor)
            if where is not None and (name := name_of(tensor)):
                self._buffers.setdefault(where, {}).setdefault(name, set()).add(span(tensor))

    def region(self, where: tuple[int, int], method: str, file: int) -> Region:
        """An empty region. It has a name if one buffer is the whole of it."""
        buffers = self._buffers.get(where, {})
        name = next(iter(buffers), "")
        alone = len(buffers) == 1 and buffers[name] == {where}
        start, end = where
        names = (name, ()) if alone else ("", tuple(buffers))
        return Region(method, file, self.number, start, end - start, *names)


def _add(region: Region, tensor: Tensor, state: bool) -> None:
    start, end = span(tensor)
    if start < region.offset or end > region.offset + region.size:
        raise LinkError(
            f"method {region.method!r}: state {region.name or 'without a name'!r} overlaps other "
            f"values in memory {region.memory}"
        )
    region.tensors.append(tensor)
    region.state |= state
    whole = end - start == region.size
    if whole and (region.anchor is None or is_told(tensor) > is_told(region.anchor)):
        region.anchor = tensor


def _require_host(method: str, plan: ExecutionPlan) -> None:
    sizes = plan.non_const_buffer_sizes or ()
    if len(sizes) > STATE + 1 or plan.non_const_buffer_device:
        raise LinkError(
            f"method {method!r}: uses {len(sizes) - 1} memories or a device's; "
            "mmpack lays out memories 1 and 2 of the host only"
        )


def planned(plan: ExecutionPlan, memory: int) -> list[Tensor]:
    """The tensors of a plan that lie in a memory, also those that take no room there."""
    return [
        value.val
        for value in plan.values or ()
        if isinstance(value.val, Tensor)
        and value.val.allocation_info is not None
        and value.val.allocation_info.memory_id == memory
    ]
