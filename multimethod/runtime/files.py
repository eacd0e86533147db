"""Files that travel inside a program (`link/files.py`), read when they are asked for.

json.loads(program.files["tokenizer_config.json"])
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from mmpack.multimethod.errors import FormatError, nearest
from mmpack.multimethod.link.file import Extent
from mmpack.multimethod.runtime.image import Image


class Files(Mapping[str, bytes]):
    """Name -> bytes. Raises KeyError, with the nearest names, for a file that is not there."""

    def __init__(self, image: Image, extents: Mapping[str, Extent]) -> None:
        self._image = image  # kept, so that a program may be let go before its files
        self._extents = dict(sorted(extents.items()))

    def __getitem__(self, name: str) -> bytes:
        if name not in self._extents:
            raise KeyError(f"{self._image.source}: no file {name!r}{nearest(name, self._extents)}")
        extent, parts, got = self._extents[name], [], 0
        while got < extent.size:
            part = os.pread(self._image.fd, extent.size - got, extent.offset + got)
            if not part:  # with `mmap=True` it is the file itself
                raise FormatError(f"{self._image.source}: has been truncated since it was loaded")
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    def __contains__(self, name: object) -> bool:  # the inherited one reads the file
        return name in self._extents

    def __repr__(self) -> str:
        told = ", ".join(f"{name!r}: {e.size} bytes" for name, e in self._extents.items())
        return f"Files({{{told}}})"
