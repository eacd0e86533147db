"""Another manifest for a program that `link` made, in its place: it stands at the end of the file,
before the checksum, so that what was linked need not be written again."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from attrs import evolve

from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.link.encode import encode
from mmpack.multimethod.link.file import HEADER_SIZE, Extent, PteFile
from mmpack.multimethod.link.integrity import INTEGRITY_KEY, TRAILER_SIZE, trailer
from mmpack.multimethod.link.manifest import MANIFEST_KEY, Manifest, manifest_bytes
from mmpack.multimethod.link.schema import DataSegment
from mmpack.multimethod.link.write import SEGMENT_ALIGNMENT, pack_header, up


def relabel(path: Path, manifest: Manifest) -> int:
    """Give a program that `link` wrote to `path`, and nobody else reads, this manifest; the size of
    the file in bytes. It is then what linking the same inputs with that manifest gives.

    The file is no program if this is interrupted. Raises OutputError if it cannot be written.
    """
    label = manifest_bytes(manifest)
    with PteFile.open(path) as file:
        count = len(file.segments)
        assert file.named[MANIFEST_KEY] == count - 2
        assert file.named[INTEGRITY_KEY] == count - 1
        table = list(file.program.segments or ())
        at = file.segments[-2].offset
        base = at - table[-2].offset
        table[-2] = DataSegment(table[-2].offset, len(label))
        end = up(table[-2].offset + len(label), SEGMENT_ALIGNMENT)
        table[-1] = DataSegment(end, TRAILER_SIZE)
        head = encode(evolve(file.program, segments=table), reserved=HEADER_SIZE)
        assert len(head) == file.program_size
        pack_header(head, base, end + TRAILER_SIZE)
        crc = zlib.crc32(head)
        for chunk in file.chunks(Extent(len(head), at - len(head))):
            crc = zlib.crc32(chunk, crc)
    tail = label + bytes(base + end - at - len(label))
    tail += trailer(zlib.crc32(tail, crc), base + end)
    try:
        with path.open("r+b") as out:
            out.write(head)
            out.truncate(at)
            out.seek(at)
            out.write(tail)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return at + len(tail)
