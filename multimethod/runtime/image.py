"""A program's bytes, which stay as they were checked for as long as it is loaded.

ExecuTorch opens a file by its name, maps it, and reads it in every call: instructions, and what
portable kernels have for weights. A file that somebody writes over meanwhile, as `cp` and Python's
`open(path, "wb")` do, crashes the process with SIGBUS or makes the runtime follow whatever stands
there now; one that is replaced between a check and its opening was never checked. So what is
checked and run is a copy in memory that the kernel lets nobody write to, this process included; or,
with a Python that cannot ask for that, one in a file without a name. The same is made for a program
that is verified, which takes memory enough as it is.

Measured with 200 MB on one machine: the copy takes 0.08 s, where reading the file for its checksum
takes 0.06 s and loading it into XNNPACK 0.11 s; asking before every call whether the file has
changed would cost each 0.9 µs and leave a gap.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import weakref
from pathlib import Path

from mmpack.multimethod.errors import ExecutionError, FormatError
from mmpack.multimethod.link.file import CHUNK, open_regular

NO_ROOM = (errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the system says where there is no memory, or disk, for a copy."""

IN_MEMORY = "cannot be read into memory: {}; with `mmap=True`, `load` maps the file instead"
ON_DISK = "cannot be copied to the folder for temporary files: {}; TMPDIR may name another folder"


class Image:
    """A program that is being run. Its memory is given back when nothing refers to it any more.

    source: the file that it was read from. fd: a descriptor of its bytes.
    mmap: these bytes are the file itself. It then must not be written to; another file may take
    its name.
    on_disk: they are a copy in the folder for temporary files, which takes memory only where that
    folder is kept in memory.
    data: of a program, what it keeps outside.
    """

    def __init__(
        self, source: Path, *, mmap: bool = False, on_disk: bool = False, kind: str = ".pte"
    ) -> None:
        self.source = source
        self.data: Image | None = None
        self.fd = open_regular(source, kind)
        if on_disk:
            self.fd = _copied(self.fd, source, sealed=False, otherwise=ON_DISK)
        elif not mmap:
            self.fd = _copied(self.fd, source, sealed=_can_seal(), otherwise=IN_MEMORY)
        weakref.finalize(self, os.close, self.fd)

    @property
    def path(self) -> Path:
        """A name under which this process can open just these bytes."""
        return Path(f"/proc/self/fd/{self.fd}")


def _copied(file: int, source: Path, *, sealed: bool, otherwise: str) -> int:
    """A copy of a file, in sealed memory or in a file without a name; the file is closed.
    otherwise: what to say where that cannot be done."""
    copy = -1
    try:
        if sealed:
            copy = os.memfd_create("mmpack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            copy = _nameless()
        at, buffer = 0, memoryview(bytearray(CHUNK))
        while count := os.preadv(file, [buffer], at):
            written = 0
            while written < count:
                written += os.write(copy, buffer[written:count])
            at += count
        if sealed:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    except BaseException as error:
        if copy >= 0:
            os.close(copy)
        if isinstance(error, OSError):
            # Where there is no room for a copy, or nowhere to make one, the file may well be right.
            kind = ExecutionError if copy < 0 or error.errno in NO_ROOM else FormatError
            raise kind(f"{source}: {otherwise.format(error.strerror)}") from error
        raise
    finally:
        os.close(file)
    return copy


def _can_seal() -> bool:
    """Whether this Python can ask for sealed memory. One built against an old glibc, as uv's older
    ones and Miniforge's are, lacks `os.memfd_create` or the names of the seals, whatever the kernel
    can do."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_SEAL_SEAL")


def _nameless() -> int:
    """An empty temporary file that has no name any more, so that nobody comes upon it and writes
    into it. It is not sealed, since only files in memory can be: against who writes to this
    process's descriptors, through /proc, there is no help here."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
