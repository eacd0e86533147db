"""A `.ptd` file, opened: ExecuTorch's tensor data, named bytes that programs keep outside.

    byte 0   offset of the root table, "FT01"
         8   "FH01", the header's length, where the flatbuffer starts, its size, where the
             segments start, how long they are together
             the flatbuffer: keys, each with a segment and perhaps a tensor's layout
             segments, each at an aligned offset

Opening reads header and flatbuffer and checks that all they claim lies inside the file. Whether the
bytes of a key are those that a program means is for `outside.py`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from attrs import define, field, frozen

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.file import Extent, OpenFile, open_regular
from mmpack.multimethod.link.flatbuffer import decode
from mmpack.multimethod.link.schema import ELEMENT_SIZES, I8, I32, U32, DataSegment, Tensor

IDENTIFIER = b"FT01"
HEADER = struct.Struct("<4sIQQQQ")
HEADER_MAGIC = b"FH01"
HEADER_AT = 8
FLATBUFFER_AT = 48
"""Where ExecuTorch's own writer has the flatbuffer go on after the header."""
VERSION = 0
"""The newest version of the schema that this ExecuTorch reads."""


@define
class TensorLayout:
    scalar_type: I8 = 0
    sizes: tuple[I32, ...] | None = None
    dim_order: bytes | None = None


@define
class KeyedData:
    key: str | None = None
    segment_index: U32 = 0
    tensor_layout: TensorLayout | None = None


@define
class FlatTensor:
    """The root."""

    version: U32 = 0
    segments: list[DataSegment] | None = None
    named_data: list[KeyedData] | None = None


@frozen
class Layout:
    """What the runtime compares a tensor with before it takes its bytes from a `.ptd`."""

    scalar_type: int
    sizes: tuple[int, ...]
    dim_order: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tensor.scalar_type, tuple(tensor.sizes or ()), bytes(tensor.dim_order or b""))


@define
class DataFile(OpenFile):
    """Where the bytes of each key lie, and the layouts of those that are tensors. Close it, or use
    it as a context manager."""

    path: Path
    size: int
    extents: dict[str, Extent] = field(factory=dict)
    layouts: dict[str, Layout] = field(factory=dict)
    _fd: int = -1

    @classmethod
    def open(cls, path: str | os.PathLike[str], fd: int | None = None) -> DataFile:
        """Opens and checks. Raises FormatError. fd: as in `PteFile.open`."""
        where = Path(path)
        own = open_regular(where, ".ptd") if fd is None else os.dup(fd)
        file = cls(where, os.fstat(own).st_size, fd=own)
        try:
            _read(file)
        except OSError as error:
            file.close()
            raise FormatError(f"{where}: cannot be read: {error.strerror}") from error
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(file: DataFile) -> None:
    def fail(message: str) -> NoReturn:
        raise FormatError(f"{file.path}: {message}")

    if file.size < HEADER_AT + HEADER.size:
        fail(f"is no .ptd file, or is truncated: it has {file.size} bytes")
    head = file.read(0, HEADER_AT + HEADER.size)
    if head[4:8] != IDENTIFIER:
        fail(f"is not ExecuTorch tensor data (.ptd): 'FT01' expected at byte 4, got {head[4:8]!r}")
    magic, length, start, size, base, total = HEADER.unpack_from(head, HEADER_AT)
    if magic != HEADER_MAGIC or length < HEADER.size:
        fail(f"its header is {magic!r} of {length} bytes, expected 'FH01' of {HEADER.size}")
    if max(start + size, base + total) > file.size:
        needed = max(start + size, base + total)
        fail(f"is truncated: it should have {needed} bytes and has {file.size}")
    if start < HEADER_AT + HEADER.size or base < start + size:
        fail(f"its header has {size} bytes of tables at {start} and segments at {base}")
    root, _ = decode(
        file.read(0, start + size), FlatTensor, identifier=IDENTIFIER, what=str(file.path)
    )
    if root.version > VERSION:
        fail(f"has version {root.version}; ExecuTorch reads {VERSION}")
    extents = []
    for number, segment in enumerate(root.segments or ()):
        if segment.offset + segment.size > total:
            end = base + segment.offset + segment.size
            fail(f"segment {number} ends at byte {end}, the segments at {base + total}")
        extents.append(Extent(base + segment.offset, segment.size))
    for named in root.named_data or ():
        if not named.key or "\0" in named.key:
            fail(f"a key is {named.key!r}")
        if named.key in file.extents:
            fail(f"key {named.key!r} is there twice")
        if named.segment_index >= len(extents):
            fail(
                f"key {named.key!r}: segment {named.segment_index} does not exist, "
                f"there are {len(extents)}"
            )
        extent = extents[named.segment_index]
        file.extents[named.key] = extent
        if named.tensor_layout is not None:
            file.layouts[named.key] = _layout(named.tensor_layout, extent, named.key, fail)


def _layout(
    told: TensorLayout, extent: Extent, key: str, fail: Callable[[str], NoReturn]
) -> Layout:
    layout = Layout(told.scalar_type, tuple(told.sizes or ()), bytes(told.dim_order or b""))
    if layout.scalar_type not in ELEMENT_SIZES:
        fail(f"key {key!r}: scalar type {layout.scalar_type} is not known")
    if any(size < 0 for size in layout.sizes):
        fail(f"key {key!r}: sizes {list(layout.sizes)} are negative")
    if sorted(layout.dim_order) != list(range(len(layout.sizes))):
        fail(f"key {key!r}: dim order {list(layout.dim_order)} for {len(layout.sizes)} sizes")
    needed = math.prod(layout.sizes) * ELEMENT_SIZES[layout.scalar_type]
    if needed > extent.size:
        fail(f"key {key!r}: its tensor has {needed} bytes, {extent.size} are there")
    return layout
