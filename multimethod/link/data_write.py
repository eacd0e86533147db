"""Writes a `.ptd`, streamed, and a program beside it: both are replaced, or neither is.

The `.ptd` goes into place first, so a program never stands beside data that lack what it wants. If
the program cannot follow, the old `.ptd` comes back.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import evolve, frozen

from mmpack.multimethod.errors import LinkError, OutputError
from mmpack.multimethod.link.blobs import Blobs, same_bytes
from mmpack.multimethod.link.data_file import (
    FLATBUFFER_AT,
    HEADER,
    HEADER_AT,
    HEADER_MAGIC,
    IDENTIFIER,
    DataFile,
    FlatTensor,
    KeyedData,
    Layout,
    TensorLayout,
)
from mmpack.multimethod.link.encode import encode
from mmpack.multimethod.link.extents import alignment_of
from mmpack.multimethod.link.schema import DataSegment
from mmpack.multimethod.link.write import SEGMENT_ALIGNMENT, Piece, Stream, up
from mmpack.multimethod.scratch import replacing, scratch_folder


@frozen
class Kept:
    """What a key stands for. layout: of a tensor that kernels take from there."""

    piece: Piece
    layout: Layout | None = None
    alignment: int = SEGMENT_ALIGNMENT


def write_data(path: str | os.PathLike[str], kept: Mapping[str, Kept]) -> int:
    """Writes a `.ptd`; its size in bytes. Pieces that are the same object, or of the same place in
    a file, are written once. Raises OutputError; the output is then what it was before."""
    numbers: dict[object, int] = {}
    pieces: list[Kept] = []
    named = []
    for key, one in kept.items():
        number = numbers.setdefault(_place(one.piece), len(pieces))
        if number == len(pieces):
            pieces.append(one)
        elif one.alignment > pieces[number].alignment:
            pieces[number] = one
        layout = None
        if (told := one.layout) is not None:
            layout = TensorLayout(told.scalar_type, told.sizes, told.dim_order)
        named.append(KeyedData(key, number, layout))
    table, end = [], 0
    for one in pieces:
        offset = up(end, one.alignment)
        table.append(DataSegment(offset, one.piece.size))
        end = offset + one.piece.size
    data = encode(
        FlatTensor(0, table, named), identifier=IDENTIFIER, reserved=FLATBUFFER_AT - HEADER_AT
    )
    base = up(len(data), max([SEGMENT_ALIGNMENT, *(one.alignment for one in pieces)]))
    size = len(data) - FLATBUFFER_AT
    HEADER.pack_into(data, HEADER_AT, HEADER_MAGIC, HEADER.size, FLATBUFFER_AT, size, base, end)
    with replacing(path, base + end) as out:
        stream = Stream(out)
        stream.put(bytes(data))
        for place, one in zip(table, pieces, strict=True):
            stream.zeros_to(base + place.offset)
            for chunk in one.piece.chunks():
                stream.put(chunk)
        stream.zeros_to(base + end)
    return base + end


def _place(piece: Piece) -> object:
    source = piece.source
    return (id(source[0]), source[1]) if isinstance(source, tuple) else source


def united(found: DataFile, kept: Mapping[str, Kept]) -> dict[str, Kept] | None:
    """What is in a `.ptd` already, and what is to come; None if nothing is to come. Raises
    LinkError if a key stands for other bytes there."""
    wide = alignment_of(SEGMENT_ALIGNMENT, found.extents.values())
    there = {
        key: Kept(Piece((found, extent)), found.layouts.get(key), wide)
        for key, extent in found.extents.items()
    }
    for key in kept.keys() & there.keys():
        if (
            there[key].layout != kept[key].layout
            or there[key].piece.size != kept[key].piece.size
            or not same_bytes(there[key].piece, kept[key].piece)
        ):
            raise LinkError(
                f"{found.path}: has other data under the key {key!r}; is it damaged? Name another "
                "file, or remove it and build all programs that use it again"
            )
    if not kept.keys() - there.keys():
        return None
    blobs = Blobs()  # what another key has there already is not written again
    return {
        key: evolve(one, piece=blobs.pieces[blobs.add(one.piece)])
        for key, one in {**kept, **there}.items()
    }


def _keep(path: Path, old: Path) -> None:
    try:
        os.link(path, old)
    except OSError:  # not every file system can
        shutil.copyfile(path, old)


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Nobody else, who does this too, changes the file during the block; if that fails, the file
    is again what it was before. Its folder is locked meanwhile, so it may not be a scratch folder
    of this process's, which is. Raises OutputError."""
    folder = path.parent
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder(folder, path.name) as scratch:
            old = scratch / "old"
            there = path.exists()
            if there:
                _keep(path, old)
            try:
                yield
            except BaseException:
                if there and not (path.exists() and os.path.samefile(old, path)):
                    os.replace(old, path)
                elif not there:
                    path.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        os.close(lock)
