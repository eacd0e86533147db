"""Files on their way: whole under their name or not there, whatever kills their writer.

What is not finished is in a folder `.<name>.mmpack-<random>.tmp` beside its output, and its owner
holds a lock on that. A process that is killed loses the lock, and whoever makes the next such
folder there removes what it left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmpack.multimethod.errors import OutputError

_MARK, _END = ".mmpack-", ".tmp"
_LONGEST = 60
"""Characters of a name that are repeated in that of its folder: there is room for 255 bytes."""


def cache_root() -> Path:
    """Where what can be made again is kept: `$MMPACK_CACHE`, or `mmpack` in the user's cache folder
    (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if own := os.environ.get("MMPACK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmpack"


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, with `name` in its own; removed with all in it after the block.

    Those that killed processes left in `parent`, for whatever name, are removed first. Raises
    OSError.
    """
    sweep(parent)
    folder, lock = _locked(parent, f".{name[:_LONGEST]}{_MARK}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the scratch folders in `parent` whose owners are dead. Raises OSError."""
    ours = re.compile(rf"\..+{re.escape(_MARK)}\w+{re.escape(_END)}")
    with os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if ours.fullmatch(entry.name)]
    for folder in found:
        with suppress(OSError):  # its owner lives, or was quicker
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(lock, folder):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and the lock on it; another one if it is swept before it is locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_END, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, folder):
                return folder, lock
            os.close(lock)


def _is_at(lock: int, folder: Path) -> bool:
    """Whether an open folder still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: str | os.PathLike[str], size: int, *, lasting: bool = True) -> Iterator[int]:
    """A file descriptor, open for reading too, of a file that becomes `path` when the block ends
    well.

    size: bytes that will be written, for the message about a full disk. OSErrors of the block
    become OutputErrors; the output is then what it was before.
    lasting: whether to wait until it is on the disk.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: is there already, and is no regular file")
    try:
        with scratch_folder(target.parent, target.name) as folder:
            temporary = folder / target.name
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                yield fd
                if lasting:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temporary, target)
            if lasting:
                _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {_reason(error, target, size)}") from error


def put_in_place(made: Path, path: str | os.PathLike[str]) -> None:
    """Move a finished file, which is on the disk, to `path`. OSErrors become OutputErrors; what is
    at `path` is then what it was before."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: is there already, and is no regular file")
    try:
        os.replace(made, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {_reason(error, target, 0)}") from error


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _reason(error: OSError, target: Path, size: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            free = shutil.disk_usage(target.parent).free
            return f"no space left: {size} bytes are needed and {free} are free"
        return f"no space left: {size} bytes are needed"
    if error.errno == errno.ENOENT and not target.parent.exists():
        return f"folder {target.parent} does not exist"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to write in {target.parent}"
    return error.strerror or str(error)
