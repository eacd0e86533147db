"""A checksum at the end of every file that mmpack writes.

The last 16 bytes of such a file are a named data blob, `mmpack.crc32`: the magic "mmpc", the
CRC-32 of every byte before them (header, tables, padding, weights), and how many bytes these
are. It finds a bad disk or a broken transfer before the runtime trusts the file; it is no
protection against a person who means harm, who can write a checksum too.
"""

from __future__ import annotations

import struct
import zlib

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.file import Extent, PteFile

INTEGRITY_KEY = "mmpack.crc32"
PREFIX = "mmpack."
"""Named data under it is mmpack's own: never copied by the linker, always made anew."""

TRAILER_SIZE = 16
_TRAILER = struct.Struct("<4sIQ")
_MAGIC = b"mmpc"


def trailer(crc: int, covered: int) -> bytes:
    """The blob for a file whose first `covered` bytes have this CRC-32."""
    return _TRAILER.pack(_MAGIC, crc, covered)


def check_integrity(file: PteFile) -> bool:
    """Whether the file carries a checksum; FormatError if it does and it is wrong.

    A file that has one in its named data or other mmpack blobs but not at its very end, or one
    at its end but not in its named data, was damaged or cut or appended to.
    """
    end = file.size - TRAILER_SIZE
    last = file.read(end, TRAILER_SIZE) if end > 0 else b""
    at_end = last[:4] == _MAGIC
    ours = any(key.startswith(PREFIX) for key in file.named)
    if not at_end and not ours:
        return False
    segment = file.named.get(INTEGRITY_KEY)
    listed = segment is not None and file.segments[segment] == Extent(end, TRAILER_SIZE)
    if not at_end or not listed:
        raise FormatError(f"{file.path}: is damaged: its checksum is not where it should be")
    _, expected, covered = _TRAILER.unpack(last)
    if covered != end:
        raise FormatError(f"{file.path}: is damaged: checksum over {covered} of {end} bytes")
    crc = 0
    for chunk in file.chunks(Extent(0, end)):
        crc = zlib.crc32(chunk, crc)
    if crc != expected:
        raise FormatError(
            f"{file.path}: is damaged: its bytes have CRC-32 {crc:08x}, expected {expected:08x}"
        )
    return True
