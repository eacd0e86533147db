"""A `.pte` file, opened: its program decoded, its segments known, their bytes read on demand.

    with PteFile.open("model.pte") as file:
        print([plan.name for plan in file.program.execution_plan])

    byte 0   offset of the root table, "ET12"
         8   extended header, if there are segments: "eh00", its length, the size of everything
             up to the segments' padding, where the segments start, how long they are together
             the program's flatbuffer
             segments, each at an aligned offset

Opening reads the header and the flatbuffer and checks that all they claim lies inside the file.
What the program then says about its values is for `check.py`.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from attrs import define, field, frozen

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.flatbuffer import decode
from mmpack.multimethod.link.schema import ExecutionPlan, Program

if TYPE_CHECKING:
    from mmpack.multimethod.link.data_file import DataFile

IDENTIFIER = b"ET12"
HEADER_MAGIC = b"eh00"
HEADER_AT = 8
HEADER_SIZE = 32
HEADER_LEAST = 24
"""Older writers end their header before the segments' total length."""

CHUNK = 1 << 20
"""Bytes read at once when segments are streamed."""

_IN_MEMORY = 64 << 20
"""Flatbuffers up to this many bytes are read, larger ones (old files with weights inside) are
mapped, so that only the pages of their tables are touched."""


@frozen
class Extent:
    """`size` bytes of a file at `offset`, counted from its start."""

    offset: int
    size: int


class OpenFile:
    """A file whose bytes are read on demand."""

    __slots__ = ()
    path: Path
    _fd: int

    def read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes. Raises FormatError if the file has become shorter."""
        parts = list(self.chunks(Extent(offset, size)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self, extent: Extent) -> Iterator[bytes]:
        """The bytes of an extent, at most CHUNK of them in memory at a time."""
        offset, end = extent.offset, extent.offset + extent.size
        while offset < end:
            chunk = os.pread(self._fd, min(CHUNK, end - offset), offset)
            if not chunk:
                raise FormatError(f"{self.path}: ends at byte {offset}, has it been truncated?")
            yield chunk
            offset += len(chunk)


@define
class PteFile(OpenFile):
    """A program and where its segments lie. Close it, or use it as a context manager.

    unknown: slots of the flatbuffer that a newer ExecuTorch wrote and that mmpack cannot copy.
    program_size: bytes of header and flatbuffer.
    data: the file beside it that holds what it keeps outside, if that is known; closed with it.
    needs: the keys of what it needs there, as far as its manifest tells, and their bytes.
    """

    path: Path
    size: int
    program: Program
    unknown: tuple[str, ...]
    program_size: int
    segments: tuple[Extent, ...]
    _fd: int = -1
    data: DataFile | None = None
    needs: Mapping[str, int] = field(factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike[str], fd: int | None = None) -> PteFile:
        """Opens and decodes. Raises FormatError, also when the file cannot be read at all.

        fd: a descriptor to read from; `path` is then only what messages call it.
        """
        where = Path(path)
        fd = open_regular(where) if fd is None else os.dup(fd)
        try:
            return _read(where, fd)
        except OSError as error:
            os.close(fd)
            raise FormatError(f"{where}: cannot be read: {error.strerror}") from error
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self.data is not None:
            self.data.close()

    def __enter__(self) -> PteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def plans(self) -> list[ExecutionPlan]:
        return self.program.execution_plan or []

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(plan.name or "" for plan in self.plans)

    @property
    def named(self) -> dict[str, int]:
        """Keys of the named data, with their segments' indices."""
        return {n.key or "": n.segment_index for n in self.program.named_data or ()}

    def size_of(self, key: str) -> int | None:
        """Bytes of the named data of a key, inside or outside; None if there are none."""
        if (segment := self.named.get(key)) is not None:
            return self.segments[segment].size
        extent = self.data.extents.get(key) if self.data is not None else None
        return extent.size if extent is not None else self.needs.get(key)

    def segment_bytes(self, index: int) -> bytes:
        extent = self.segments[index]
        return self.read(extent.offset, extent.size)


def open_regular(path: Path, kind_of: str = ".pte") -> int:
    """A descriptor to read a regular file with. Raises FormatError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
    except OSError as error:
        raise FormatError(f"{path}: cannot be opened: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise FormatError(f"{path}: is {kind}, expected a {kind_of} file")
    return fd


def _read(path: Path, fd: int) -> PteFile:
    size = os.fstat(fd).st_size
    head = os.pread(fd, 64, 0)

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{path}: {message}")

    if head[4:8] != IDENTIFIER:
        fail(_looks_like(head, size))
    program_size, base = size, 0
    if head[HEADER_AT : HEADER_AT + 4] == HEADER_MAGIC:
        program_size, base, total = _header(head, fail)
        needed = max(program_size, base + total)
        if needed > size:
            fail(f"is truncated: it should have {needed} bytes and has {size}")
        if base and base < program_size:
            fail(f"segments start at byte {base}, inside the program's {program_size} bytes")
    if program_size < 8:
        fail(f"its header says that the program has {program_size} bytes")
    if program_size <= _IN_MEMORY:
        flatbuffer = os.pread(fd, program_size, 0)
        program, unknown = decode(flatbuffer, Program, what=str(path))
    else:
        with (
            mmap.mmap(fd, program_size, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            program, unknown = decode(view, Program, what=str(path))
    extents = []
    for number, segment in enumerate(program.segments or ()):
        end = base + segment.offset + segment.size
        if not base and end:  # empty ones are written even where there is no header
            fail(f"segment {number}: the header says that there are no segments")
        if end > size:
            fail(f"is truncated: segment {number} ends at byte {end} and the file at {size}")
        extents.append(Extent(base + segment.offset, segment.size))
    return PteFile(path, size, program, unknown, program_size, tuple(extents), fd)


def _header(head: bytes, fail: Callable[[str], NoReturn]) -> tuple[int, int, int]:
    """Program size, segment base and total size of the segments (0: not told)."""
    length = int.from_bytes(head[12:16], "little")
    if length < HEADER_LEAST or len(head) < HEADER_AT + HEADER_SIZE:
        fail(f"its extended header has length {length}, at least {HEADER_LEAST} is needed")
    numbers = [int.from_bytes(head[at : at + 8], "little") for at in (16, 24, 32)]
    return numbers[0], numbers[1], numbers[2] if length >= HEADER_SIZE else 0


def _looks_like(head: bytes, size: int) -> str:
    """What a file that is no program seems to be."""
    expected = f"an ExecuTorch program has {IDENTIFIER.decode()!r} at byte 4"
    if not size:
        return "is empty"
    if head[4:6] == b"ET" and head[6:8].isdigit():
        return f"is an ExecuTorch program of schema {head[4:8].decode()}, mmpack reads ET12"
    known = {
        head[4:8] == b"FT01": "ExecuTorch tensor data (.ptd), not a program",
        head[4:8] == b"BP08": "an ExecuTorch bundled program (.bpte): take the .pte inside",
        head[:4] == b"PK\x03\x04": "a zip archive: an exported program (.pt2) or a checkpoint?",
        head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, 9): "safetensors",
        head[:4] == b"GGUF": "a GGUF model",
        head.startswith(b"version https://git-lfs"): "a Git LFS pointer: run `git lfs pull`",
        head[:1] == b"\x80": "a pickle",
    }
    if True in known:
        return f"looks like {known[True]}; {expected}"
    return f"is not an ExecuTorch program: {expected}, this has {head[4:8]!r}"
