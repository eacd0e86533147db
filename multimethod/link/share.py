"""How large a program's methods are, and how much they share.

with open_program("model.pte") as file:
    print(sizes(file).shared, "bytes are used more than once")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from mmpack.multimethod.link.check_calls import nbytes
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.integrity import PREFIX
from mmpack.multimethod.link.schema import DataLocation, ExecutionPlan, Location, Span, Tensor
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
    stored: what all of these take in the file.
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
    for plan in file.plans:
        delegates, constants = list(delegate_extents(file, plan)), _constants(file, plan)
        keys: set[str] = set()
        for delegate, extent in zip(plan.delegates or (), delegates, strict=True):
            if delegate.id == BACKEND:
                keys |= keys_of(file, extent)
        named = [file.segments[file.named[key]] for key in keys]
        methods[plan.name or ""] = MethodSize(
            covered(delegates), covered(constants), covered(named)
        )
        everything += [*delegates, *constants]
        unused = {key: extent for key, extent in unused.items() if key not in keys}
    return Sizes(methods, covered(unused.values()), covered(everything))


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
