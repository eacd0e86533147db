"""Folders for files on their way: gone when their owner is done, and also when it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder `.<name>.<random>.tmp` in `parent`, removed with all in it after the block.

    Those that killed processes left there under this name are removed first: a living owner
    holds a lock on its folder. Raises OSError.
    """
    sweep(parent, name)
    folder, lock = _locked(parent, f".{name}.")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # somebody swept it before it was locked
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def sweep(parent: Path, name: str) -> None:
    """Remove the scratch folders of this name whose owners are dead. Raises OSError."""
    prefix = f".{name}."
    with os.scandir(parent) as entries:
        stale = [e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(".tmp")]
    for path in stale:
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
