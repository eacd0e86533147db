"""The data of several programs as the segments of one.

    segment 0   constants, one after the other, equal ones once
    then        named data and delegates whose bytes are also a constant: they lie inside
                segment 0 (their constant is then aligned as a segment)
    then        initial data of mutable buffers
    then        delegates and named data, equal ones once, each a segment

Everything is aligned as widely as its file aligned all of its kind, constants to 16 bytes and
segments to 128 at least. Constants and delegates that old files keep in the flatbuffer become
segments too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attrs import define, evolve, field

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.blobs import Blobs
from mmpack.multimethod.link.check_calls import nbytes
from mmpack.multimethod.link.extents import (
    constant_extent,
    constant_sizes,
    delegate_extents,
    external,
    tensors,
)
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.files import FILE_PREFIX
from mmpack.multimethod.link.integrity import INTEGRITY_KEY, PREFIX
from mmpack.multimethod.link.manifest import MANIFEST_KEY
from mmpack.multimethod.link.schema import (
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    DataLocation,
    ExecutionPlan,
    NamedData,
    Program,
    SubsegmentOffsets,
)
from mmpack.multimethod.link.write import SEGMENT_ALIGNMENT, Piece, Segment, up

CONSTANT_ALIGNMENT = 16
LARGEST_ALIGNMENT = 1 << 14
"""Bytes. More than a page of the usual processors is chance."""

OURS = (MANIFEST_KEY, INTEGRITY_KEY)
"""Keys of the named data that are made anew."""


@define
class Data:
    """Blobs by what refers to them: (file, index) -> blob for constants, initial data and the
    delegates' extents; key -> blob for named data. alignment: bytes, by blob."""

    blobs: Blobs = field(factory=Blobs)
    constants: dict[tuple[int, int], int] = field(factory=dict)
    initial: dict[tuple[int, int], int] = field(factory=dict)
    delegates: dict[tuple[int, Extent], int] = field(factory=dict)
    named: dict[str, int] = field(factory=dict)
    segments: list[Segment] = field(factory=list)
    alignment: dict[int, int] = field(factory=dict)
    _files: Sequence[PteFile] = ()
    _constant_index: dict[int, int] = field(factory=dict)
    _initial_index: dict[int, int] = field(factory=dict)
    _segment_of: dict[int, int] = field(factory=dict)
    _extra: list[tuple[str, bytes]] = field(factory=list)
    _offsets: tuple[int, ...] = (0,)
    _initial_offsets: tuple[int, ...] = (0,)
    _initial_segment: int = 0

    @property
    def stored(self) -> int:
        """Bytes of constants, delegates and named data, equal ones counted once."""
        used = {*self.constants.values(), *self.delegates.values(), *self.named.values()}
        return sum(self.blobs.pieces[blob].size for blob in used)

    @property
    def files(self) -> dict[str, int]:
        """The bytes of each file that travels along, by name."""
        return {
            key.removeprefix(FILE_PREFIX): self.blobs.pieces[blob].size
            for key, blob in self.named.items()
            if key.startswith(FILE_PREFIX)
        }

    def add_named(self, key: str, data: bytes) -> None:
        """A blob that is made anew."""
        self._extra.append((key, data))

    def add_file(self, name: str, data: bytes) -> None:
        """A file that travels along (`files.py`). LinkError if an input brought another of its
        name."""
        blob = self.blobs.add(Piece(data))
        self.alignment.setdefault(blob, SEGMENT_ALIGNMENT)
        if self.named.setdefault(FILE_PREFIX + name, blob) != blob:
            raise LinkError(f"file {name!r} is not the same as that in one of the inputs")

    def renumber(self, plans: Sequence[tuple[int, str, ExecutionPlan]]) -> None:
        """Lays out the segments and makes the plans refer to them, in place."""
        self._lay_out()
        for file, _, plan in plans:
            for tensor in tensors([plan]):
                if not tensor.data_buffer_idx or external(tensor):
                    continue
                place = (file, tensor.data_buffer_idx)
                if tensor.allocation_info is None:
                    tensor.data_buffer_idx = self._constant_index[self.constants[place]]
                else:
                    tensor.data_buffer_idx = self._initial_index[self.initial[place]]
            extents = list(delegate_extents(self._files[file], plan))
            for delegate, extent in zip(plan.delegates or (), extents, strict=True):
                delegate.processed = BackendDelegateDataReference(DataLocation.INLINE, 0)
                if extent.size:
                    blob = self.delegates[file, extent]
                    reference = (DataLocation.SEGMENT, self._segment_of[blob])
                    delegate.processed = BackendDelegateDataReference(*reference)

    def fill(self, program: Program) -> Program:
        """The program with its references to the segments."""
        named = [NamedData(key, self._segment_of[blob]) for key, blob in self.named.items()]
        for key, data in self._extra:
            named.append(NamedData(key, len(self.segments)))
            self.segments.append(Segment.of(data))
        empty = any(
            delegate.processed and delegate.processed.location == DataLocation.INLINE
            for plan in program.execution_plan or ()
            for delegate in plan.delegates or ()
        )
        mutable = [SubsegmentOffsets(self._initial_segment, self._initial_offsets)]
        return evolve(
            program,
            constant_buffer=[],
            backend_delegate_data=[BackendDelegateInlineData(b"")] if empty else [],
            constant_segment=SubsegmentOffsets(0, self._offsets),
            mutable_data_segments=mutable if self._initial_index else None,
            named_data=named or None,
        )

    def _lay_out(self) -> None:
        pieces = self.blobs.pieces
        referred = [*self.delegates.values(), *self.named.values()]
        blobs = list(dict.fromkeys(self.constants.values()))
        placed: list[tuple[int, Piece]] = []
        offsets, end = [0], 0
        for number, blob in enumerate(blobs, 1):
            end = up(end, self.alignment[blob])
            self._constant_index[blob] = number
            placed.append((end, pieces[blob]))
            offsets.append(end)
            end += pieces[blob].size
        if blobs and not end:  # the runtime takes an empty segment for none at all
            placed = [(0, Piece(bytes(CONSTANT_ALIGNMENT)))]
        self._offsets = tuple(offsets)
        widest = max([SEGMENT_ALIGNMENT, *(self.alignment[blob] for blob in blobs)])
        self.segments.append(Segment(tuple(placed), alignment=widest))
        for blob in blobs:
            if blob in referred and pieces[blob].size:
                inside = (0, offsets[self._constant_index[blob]], pieces[blob].size)
                self._segment_of[blob] = len(self.segments)
                self.segments.append(Segment(inside=inside))
        self._lay_out_initial()
        for blob in referred:
            if blob not in self._segment_of:
                self._segment_of[blob] = len(self.segments)
                self.segments.append(Segment.of(pieces[blob], self.alignment[blob]))

    def _lay_out_initial(self) -> None:
        placed: list[tuple[int, Piece]] = []
        offsets, end = [0], 0
        for number, blob in enumerate(dict.fromkeys(self.initial.values()), 1):
            piece = self.blobs.pieces[blob]
            self._initial_index[blob] = number
            placed.append((end, piece))
            offsets.append(end)
            end = up(end + piece.size, CONSTANT_ALIGNMENT)
        if placed:
            self._initial_offsets, self._initial_segment = tuple(offsets), len(self.segments)
            self.segments.append(Segment(tuple(placed)))


def merge_data(files: Sequence[PteFile], *, foreign: bool = True) -> Data:
    """Collects the data of all files. LinkError where one key names different bytes, or may.

    foreign: somebody may have asked for wider alignments than the usual ones."""
    _require_same_external(files)
    data = Data(files=files)
    owners: dict[str, PteFile] = {}

    def add(file: PteFile, extent: Extent, alignment: int) -> int:
        blob = data.blobs.add(Piece((file, extent)))
        data.alignment[blob] = max(data.alignment.get(blob, 1), alignment)
        return blob

    for number, file in enumerate(files):
        plans = file.plans
        used = sorted(constant_sizes(plans).items())
        extents = {index: constant_extent(file, index, size) for index, size in used}
        wide = _alignment(CONSTANT_ALIGNMENT, extents.values() if foreign else ())
        for index, extent in extents.items():
            data.constants[number, index] = add(file, extent, wide)
        wide = _alignment(SEGMENT_ALIGNMENT, file.segments if foreign else ())
        for index, size in sorted(_initial_sizes(plans).items()):
            extent = _initial_extent(file, index, size)
            data.initial[number, index] = add(file, extent, CONSTANT_ALIGNMENT)
        for plan in plans:
            for extent in delegate_extents(file, plan):
                if extent.size and (number, extent) not in data.delegates:
                    data.delegates[number, extent] = add(file, extent, wide)
        for key, segment in file.named.items():
            if key in OURS:
                continue
            if key.startswith(PREFIX) and not key.startswith(FILE_PREFIX):
                raise LinkError(f"{file.path}: has {key!r}, which only a newer mmpack can carry on")
            blob = add(file, file.segments[segment], wide)
            if data.named.setdefault(key, blob) != blob:
                both = f"{owners[key].path} and in {file.path}"
                if key.startswith(FILE_PREFIX):
                    raise LinkError(
                        f"file {key.removeprefix(FILE_PREFIX)!r} is not the same in {both}; leave "
                        "it out of one of the specs, or rename it there, and build that again"
                    )
                raise LinkError(f"named data {key!r} are not the same in {both}")
            owners.setdefault(key, file)
    return data


def _alignment(least: int, extents: Iterable[Extent]) -> int:
    """What all of some pieces of a file are aligned to: its author may have asked for more than
    the `least` that there is."""
    offsets = [extent.offset for extent in extents if extent.size]
    common = math.gcd(LARGEST_ALIGNMENT, *offsets)
    return max(least, common) if len(offsets) > 1 else least


def _require_same_external(files: Sequence[PteFile]) -> None:
    """Tensors out of other files (`.ptd`) are found by name alone, first among the program's own
    named data: one name must mean one tensor. Their values are not here to be compared."""
    kinds: dict[str, tuple[object, PteFile]] = {}
    for file in files:
        for tensor in filter(external, tensors(file.plans)):
            assert tensor.extra_tensor_info is not None
            name = tensor.extra_tensor_info.fully_qualified_name or ""
            kind = (tensor.scalar_type, tensor.sizes, tensor.dim_order)
            first, where = kinds.setdefault(name, (kind, file))
            if first != kind:
                raise LinkError(
                    f"{where.path} and {file.path} both take {name!r} from a .ptd file, but not "
                    "with one dtype and shape: it cannot be the same tensor"
                )
            for other in files:
                if other is not file and name in other.named:
                    raise LinkError(
                        f"{file.path} takes {name!r} from a .ptd file, and {other.path} has named "
                        "data of that name, which would be taken instead"
                    )


def _initial_sizes(plans: Sequence[ExecutionPlan]) -> dict[int, int]:
    used: dict[int, int] = {}
    for tensor in tensors(plans):
        if tensor.data_buffer_idx and tensor.allocation_info is not None and not external(tensor):
            index = tensor.data_buffer_idx
            used[index] = max(used.get(index, 0), nbytes(tensor))
    return used


def _initial_extent(file: PteFile, index: int, size: int) -> Extent:
    segment = (file.program.mutable_data_segments or [])[0]
    offset = (segment.offsets or ())[index]
    return Extent(file.segments[segment.segment_index].offset + offset, size)
