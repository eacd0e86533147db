"""How large a program's methods are, and how much they share.

with open_program("model.pte") as file:
    print(sizes(file).shared, "bytes are used more than once")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from .check_plan import nbytes
from .file import Extent, PteFile
from .integrity import PREFIX
from .schema import DataLocation, ExecutionPlan, Location, Span, Tensor


@frozen
class MethodSize:
    """Bytes of delegate data and of constants that one method reaches, each counted once."""

    delegates: int
    constants: int

    @property
    def total(self) -> int:
        return self.delegates + self.constants


@frozen
class Sizes:
    """Of one file, in bytes.

    methods: per method. Which named data (XNNPACK's weights, say) a method uses stands inside
    its delegate's data, so they are counted for the program: `named`, once per key.
    stored: what all of these take in the file.
    shared: what they would take on top if every method and key had its own copy.
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
    named = [
        file.segments[index] for key, index in file.named.items() if not key.startswith(PREFIX)
    ]
    everything = list(named)
    for plan in file.plans:
        delegates, constants = set(delegate_extents(file, plan)), _constants(file, plan)
        everything += [*delegates, *constants]
        methods[plan.name or ""] = MethodSize(covered(delegates), covered(constants))
    return Sizes(methods, sum(extent.size for extent in named), covered(everything))


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


def external(tensor: Tensor) -> bool:
    """Whether a tensor's data are in another file (`.ptd`)."""
    extra = tensor.extra_tensor_info
    return extra is not None and extra.location == Location.EXTERNAL


def covered(extents: Iterable[Extent]) -> int:
    """Bytes that lie in at least one of the extents."""
    total = end = 0
    for extent in sorted(extents, key=lambda e: (e.offset, e.size)):
        total += max(0, extent.offset + extent.size - max(end, extent.offset))
        end = max(end, extent.offset + extent.size)
    return total


def _constants(file: PteFile, plan: ExecutionPlan) -> set[Extent]:
    used = constant_sizes([plan])
    return {constant_extent(file, index, size) for index, size in used.items()}
