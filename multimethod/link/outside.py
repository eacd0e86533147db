"""What a program keeps in a `.ptd` beside it: found, and held against what the program says.

    file = open_whole("model.pte")  # and the .ptd that its manifest names

A key is what a delegate calls its weights (for XNNPACK a hash of them), or, for a tensor that
kernels take, dtype, shape and a hash of its bytes. So a `.ptd` can serve several programs, and may
hold more than one of them wants. What a program needs of it stands in its manifest, with checksums.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmpack.multimethod.errors import FormatError, nearest
from mmpack.multimethod.link.blobs import crc_of
from mmpack.multimethod.link.check import open_program
from mmpack.multimethod.link.check_calls import external
from mmpack.multimethod.link.check_manifest import read_manifest
from mmpack.multimethod.link.data_file import DataFile, Layout
from mmpack.multimethod.link.extents import tensors
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.manifest import Manifest
from mmpack.multimethod.link.schema import ScalarType, Tensor
from mmpack.multimethod.link.write import Piece


def open_whole(path: str | os.PathLike[str]) -> PteFile:
    """`open_program`, and with it the data that mmpack put into a file beside it. Raises
    FormatError; the caller closes the file."""
    file = open_program(path)
    try:
        manifest = read_manifest(file)
        place = place_of(file.path, manifest)
        if place is not None:
            attach(file, manifest, DataFile.open(place))
    except BaseException:
        file.close()
        raise
    return file


def attach(file: PteFile, manifest: Manifest | None, data: DataFile | None) -> None:
    """Have a program's data be these, which are then closed with it. Raises FormatError unless they
    have all that it needs (`require_data`)."""
    file.data, file.needs = data, needs(manifest)
    require_data(file, manifest)


def needs(manifest: Manifest | None) -> dict[str, int]:
    """The keys that a program needs in another file, as far as mmpack knows, and their bytes."""
    record = manifest.data if manifest is not None else None
    return {key: size for key, (size, _) in record.keys.items()} if record is not None else {}


def place_of(path: Path, manifest: Manifest | None) -> Path | None:
    """Where the data of a program are: beside it, or beside what it is a link to; None if it has
    none outside, as far as mmpack knows. Raises FormatError if they are not there."""
    place = find_data(path, manifest)
    if place is None and manifest is not None and manifest.data is not None:
        key = next(iter(manifest.data.keys), "")
        raise FormatError(
            f"{path}: its weights (as {key!r}) are in {manifest.data.file}, which is not beside "
            "it; `load(path, data=…)` takes that from elsewhere"
        )
    return place


def find_data(path: Path, manifest: Manifest | None) -> Path | None:
    """The same, or None if it is not there."""
    if manifest is None or manifest.data is None:
        return None
    for folder in (path.parent, Path(os.path.realpath(path)).parent):
        if (place := folder / manifest.data.file).exists():
            return place
    return None


def require_data(file: PteFile, manifest: Manifest | None) -> None:
    """Raises FormatError unless the file's `data` have all that the program needs: each key, with
    the bytes that the manifest tells of, and with the layouts of the tensors."""
    record = manifest.data if manifest is not None else None
    found = file.data
    for key, (size, crc) in record.keys.items() if record is not None else ():
        assert found is not None
        if key not in found.extents:
            others = nearest(key, found.extents, shown=3)
            raise FormatError(f"{found.path}: has no {key!r}, which {file.path} needs{others}")
        there = found.extents[key].size
        if there != size:
            raise FormatError(
                f"{found.path}: has {there} bytes of {key!r}, and {file.path} needs {size}"
            )
        if (is_ := crc_of(Piece((found, found.extents[key])))) != crc:
            raise FormatError(
                f"{found.path}: is damaged, or not the one that {file.path} was made with: {key!r} "
                f"has CRC-32 {is_:08x}, expected {crc:08x}"
            )
    for key, tensor in outside(file):
        if found is None:
            raise FormatError(
                f"{file.path}: takes {key!r} from a .ptd file, and none is given; "
                "`load(path, data=…)` names it"
            )
        layout = Layout.of(tensor)
        if key not in found.extents:
            others = nearest(key, found.extents, shown=3)
            raise FormatError(f"{found.path}: has no {key!r}, which {file.path} needs{others}")
        if found.layouts.get(key) != layout:
            raise FormatError(
                f"{found.path}: {key!r} is {shown(found.layouts.get(key))}, and {file.path} needs "
                f"{shown(layout)}"
            )


def outside(file: PteFile) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a program that are in another file, with their keys."""
    for tensor in filter(external, tensors(file.plans)):
        assert tensor.extra_tensor_info is not None
        yield tensor.extra_tensor_info.fully_qualified_name or "", tensor


def tensor_key(layout: Layout, content: str) -> str:
    """The key of a tensor with bytes of this hash."""
    return f"{shown(layout)}:{content}"


def content_hash(piece: Piece) -> str:
    """SHA-256 of some bytes."""
    known = hashlib.sha256()
    for chunk in piece.chunks():
        known.update(chunk)
    return known.hexdigest()


def shown(layout: Layout | None) -> str:
    """
    >>> shown(Layout(6, (3, 4), bytes((1, 0))))
    'float32[3,4](1,0)'
    """
    if layout is None:
        return "no tensor"
    sizes = ",".join(map(str, layout.sizes))
    plain = list(layout.dim_order) == sorted(layout.dim_order)
    order = "" if plain else f"({','.join(map(str, layout.dim_order))})"
    return f"{ScalarType(layout.scalar_type).name}[{sizes}]{order}"
