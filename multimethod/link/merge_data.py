"""The data of several programs as the segments of one.

    segment 0   constants, one after the other, equal ones once
    then        named data and delegates whose bytes are also a constant: they lie inside
                segment 0 (their constant is then aligned as a segment)
    then        initial data of mutable buffers
    then        delegates and named data, equal ones once, each a segment

Everything is aligned as widely as its file aligned all of its kind, constants to 16 bytes and
segments to 128 at least. Constants and delegates that old files keep in the flatbuffer become
segments too.

Constants and named data may lie outside instead, in a `.ptd` (`outside.py`); so may those of the
inputs, wherever they go. Files that travel along, initial data and delegates stay inside.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, evolve, field

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.blobs import Blobs
from mmpack.multimethod.link.check_calls import external, nbytes
from mmpack.multimethod.link.data_file import Layout
from mmpack.multimethod.link.data_write import Kept
from mmpack.multimethod.link.extents import (
    alignment_of,
    constant_extent,
    constant_sizes,
    delegate_extents,
    tensors,
)
from mmpack.multimethod.link.file import Extent, OpenFile, PteFile
from mmpack.multimethod.link.files import FILE_PREFIX
from mmpack.multimethod.link.integrity import INTEGRITY_KEY, PREFIX
from mmpack.multimethod.link.manifest import MANIFEST_KEY, DataRecord
from mmpack.multimethod.link.outside import content_hash, outside, tensor_key
from mmpack.multimethod.link.schema import (
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    DataLocation,
    ExecutionPlan,
    ExtraTensorInfo,
    Location,
    NamedData,
    Program,
    SubsegmentOffsets,
    Tensor,
)
from mmpack.multimethod.link.write import SEGMENT_ALIGNMENT, Piece, Segment, up

CONSTANT_ALIGNMENT = 16

OURS = (MANIFEST_KEY, INTEGRITY_KEY)
"""Keys of the named data that are made anew."""


@define
class Data:
    """Blobs by what refers to them: (file, index) -> blob for constants, initial data and the
    delegates' extents; key -> blob for named data. Of constants that a file has outside, the key is
    their index. alignment: bytes, by blob.

    apart: whether constants and named data go outside. kept: those that do, by key."""

    blobs: Blobs = field(factory=Blobs)
    constants: dict[tuple[int, int | str], int] = field(factory=dict)
    initial: dict[tuple[int, int], int] = field(factory=dict)
    delegates: dict[tuple[int, Extent], int] = field(factory=dict)
    named: dict[str, int] = field(factory=dict)
    segments: list[Segment] = field(factory=list)
    alignment: dict[int, int] = field(factory=dict)
    apart: bool = False
    kept: dict[str, Kept] = field(factory=dict)
    _files: Sequence[PteFile] = ()
    _constant_index: dict[int, int] = field(factory=dict)
    _initial_index: dict[int, int] = field(factory=dict)
    _segment_of: dict[int, int] = field(factory=dict)
    _hashes: dict[int, str] = field(factory=dict)
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

    def record(self, name: str) -> DataRecord | None:
        """What the manifest says of what is kept outside, in a file of this name."""
        numbers = {id(piece): number for number, piece in enumerate(self.blobs.pieces)}
        keys = {
            key: (kept.piece.size, self.blobs.crc(numbers[id(kept.piece)]))
            for key, kept in sorted(self.kept.items())
        }
        return DataRecord(name, keys) if keys else None

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
                if (blob := self._constant(file, tensor)) is not None:
                    self._refer(tensor, blob)
                elif tensor.data_buffer_idx and not external(tensor):
                    initial = self.initial[file, tensor.data_buffer_idx]
                    tensor.data_buffer_idx = self._initial_index[initial]
            extents = list(delegate_extents(self._files[file], plan))
            for delegate, extent in zip(plan.delegates or (), extents, strict=True):
                delegate.processed = BackendDelegateDataReference(DataLocation.INLINE, 0)
                if extent.size:
                    blob = self.delegates[file, extent]
                    reference = (DataLocation.SEGMENT, self._segment_of[blob])
                    delegate.processed = BackendDelegateDataReference(*reference)

    def _constant(self, file: int, tensor: Tensor) -> int | None:
        """The blob of a constant; None for another tensor, or one whose data are not here."""
        if tensor.allocation_info is not None:
            return None
        extra = tensor.extra_tensor_info
        if extra is not None and external(tensor):
            return self.constants.get((file, extra.fully_qualified_name or ""))
        return self.constants[file, tensor.data_buffer_idx] if tensor.data_buffer_idx else None

    def _refer(self, tensor: Tensor, blob: int) -> None:
        """Have a constant's tensor lead to its blob."""
        extra = tensor.extra_tensor_info or ExtraTensorInfo()
        if self._is_apart(blob):
            layout = Layout.of(tensor)
            if blob not in self._hashes:
                self._hashes[blob] = content_hash(self.blobs.pieces[blob])
            key = tensor_key(layout, self._hashes[blob])
            self.kept[key] = Kept(self.blobs.pieces[blob], layout, self._wide(blob))
            tensor.data_buffer_idx = 0
            tensor.extra_tensor_info = evolve(
                extra, fully_qualified_name=key, location=Location.EXTERNAL
            )
            return
        if external(tensor):
            tensor.extra_tensor_info = evolve(
                extra, fully_qualified_name=None, location=Location.SEGMENT
            )
        tensor.data_buffer_idx = self._constant_index[blob]

    def _is_apart(self, blob: int) -> bool:
        return self.apart and self.blobs.pieces[blob].size > 0

    def _wide(self, blob: int) -> int:
        return max(SEGMENT_ALIGNMENT, self.alignment[blob])

    def _stays(self, key: str, blob: int) -> bool:
        """Whether named data stay inside."""
        return key.startswith(FILE_PREFIX) or not self._is_apart(blob)

    def fill(self, program: Program) -> Program:
        """The program with its references to the segments."""
        named = [
            NamedData(key, self._segment_of[blob])
            for key, blob in self.named.items()
            if self._stays(key, blob)
        ]
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
        inside = [blob for key, blob in self.named.items() if self._stays(key, blob)]
        for key, blob in self.named.items():
            if not self._stays(key, blob):
                self.kept[key] = Kept(pieces[blob], None, self._wide(blob))
        referred = [*self.delegates.values(), *inside]
        blobs = [b for b in dict.fromkeys(self.constants.values()) if not self._is_apart(b)]
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
                where = (0, offsets[self._constant_index[blob]], pieces[blob].size)
                self._segment_of[blob] = len(self.segments)
                self.segments.append(Segment(inside=where))
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


def merge_data(files: Sequence[PteFile], *, foreign: bool = True, apart: bool = False) -> Data:
    """Collects the data of all files. LinkError where one key names different bytes, or may.

    foreign: somebody may have asked for wider alignments than the usual ones.
    apart: constants and named data are to go outside.
    """
    _require_same_external(files, apart)
    data = Data(files=files, apart=apart)
    owners: dict[str, PteFile] = {}

    def add(file: OpenFile, extent: Extent, alignment: int) -> int:
        blob = data.blobs.add(Piece((file, extent)))
        data.alignment[blob] = max(data.alignment.get(blob, 1), alignment)
        return blob

    for number, file in enumerate(files):
        plans = file.plans
        used = sorted(constant_sizes(plans).items())
        extents = {index: constant_extent(file, index, size) for index, size in used}
        wide = alignment_of(CONSTANT_ALIGNMENT, extents.values() if foreign else ())
        for index, extent in extents.items():
            data.constants[number, index] = add(file, extent, wide)
        wide = alignment_of(SEGMENT_ALIGNMENT, file.segments if foreign else ())
        for index, size in sorted(_initial_sizes(plans).items()):
            extent = _initial_extent(file, index, size)
            data.initial[number, index] = add(file, extent, CONSTANT_ALIGNMENT)
        for plan in plans:
            for extent in delegate_extents(file, plan):
                if extent.size and (number, extent) not in data.delegates:
                    data.delegates[number, extent] = add(file, extent, wide)
        found: list[tuple[str, OpenFile, Extent, int]] = [
            (key, file, file.segments[segment], wide) for key, segment in file.named.items()
        ]
        if file.data is not None:
            tensors_there = {key for key, _ in outside(file)}
            wide = alignment_of(SEGMENT_ALIGNMENT, file.data.extents.values())
            for key in file.needs:
                extent = file.data.extents[key]
                if key in tensors_there:
                    data.constants[number, key] = add(file.data, extent, wide)
                else:
                    found.append((key, file.data, extent, wide))
        for key, place, extent, aligned in found:
            if key in OURS:
                continue
            if key.startswith(PREFIX) and not key.startswith(FILE_PREFIX):
                raise LinkError(f"{file.path}: has {key!r}, which only a newer mmpack can carry on")
            blob = add(place, extent, aligned)
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


def _require_same_external(files: Sequence[PteFile], apart: bool) -> None:
    """Tensors out of other files (`.ptd`) are found by name alone, first among the program's own
    named data: one name must mean one tensor. Their values are not here to be compared, other than
    those of programs that mmpack made."""
    kinds: dict[str, tuple[object, PteFile]] = {}
    for file in files:
        for name, tensor in outside(file):
            if name in file.needs:
                continue
            if apart:
                raise LinkError(
                    f"{file.path}: takes {name!r} from a .ptd file that mmpack did not make, and a "
                    "program is run with one .ptd: link it without one of its own"
                )
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
