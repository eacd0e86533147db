"""Where the data that methods refer to lie in their file: constants and delegates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from mmpack.multimethod.link.check_calls import external, nbytes
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.schema import DataLocation, ExecutionPlan, Span, Tensor

LARGEST_ALIGNMENT = 1 << 14
"""Bytes. More than a page of the usual processors is chance."""


def delegate_extents(file: PteFile, plan: ExecutionPlan) -> Iterator[Extent]:
    """Where the data of a plan's delegates are, in the order of the delegates."""
    for delegate in plan.delegates or ():
        assert delegate.processed is not None
        index = delegate.processed.index
        if delegate.processed.location == DataLocation.SEGMENT:
            yield file.segments[index]
        else:
            data = (file.program.backend_delegate_data or [])[index].data
            yield Extent(data.offset, data.size) if isinstance(data, Span) else Extent(0, 0)


def constant_extent(file: PteFile, index: int, size: int) -> Extent:
    """Where `size` bytes of constant `index` are, in a segment or in the flatbuffer."""
    segment = file.program.constant_segment
    if segment is not None and len(segment.offsets or ()) > 1:
        offset = (segment.offsets or ())[index]
        return Extent(file.segments[segment.segment_index].offset + offset, size)
    storage = (file.program.constant_buffer or [])[index].storage
    return Extent(storage.offset if isinstance(storage, Span) else 0, size)


def constant_sizes(plans: Iterable[ExecutionPlan]) -> dict[int, int]:
    """Bytes that plans use of each constant, by its index."""
    used: dict[int, int] = {}
    for tensor in tensors(plans):
        if tensor.data_buffer_idx and tensor.allocation_info is None and not external(tensor):
            index = tensor.data_buffer_idx
            used[index] = max(used.get(index, 0), nbytes(tensor))
    return used


def tensors(plans: Iterable[ExecutionPlan]) -> Iterator[Tensor]:
    for plan in plans:
        for value in plan.values or ():
            if isinstance(value.val, Tensor):
                yield value.val


def alignment_of(least: int, extents: Iterable[Extent]) -> int:
    """What all of some pieces of a file are aligned to: its author may have asked for more than
    the `least` that there is."""
    offsets = [extent.offset for extent in extents if extent.size]
    common = math.gcd(LARGEST_ALIGNMENT, *offsets)
    return max(least, common) if len(offsets) > 1 else least
