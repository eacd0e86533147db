"""What a cache holds, and how it is made smaller: what was not used for longest goes first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from mmpack.multimethod.compile.cache import LOCK, read_record
from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.scratch import cache_root


@frozen
class Stored:
    """One compiled method, or what exporting one told (`method` and `backend` are None then; of
    half an object that a killed build left, they are `?`).

    size: bytes on disk. used: when a build last took it or put it there, seconds since 1970.
    """

    method: str | None
    backend: str | None
    size: int
    used: float
    paths: tuple[Path, ...]


@frozen
class Pruned:
    """What a pruning removed, and what is left. Sizes in bytes."""

    removed: tuple[Stored, ...]
    kept: tuple[Stored, ...]


def stored(root: Path | None = None) -> list[Stored]:
    """All that a cache holds, what was used last first; nothing for a folder that is not there.

    root: the cache's folder; None: see `cache_root`.
    """
    root = (root or cache_root()).absolute()
    found = [*_objects(root), *_facts(root)]
    return sorted(found, key=lambda entry: (-entry.used, entry.paths))


def prune(most: int, root: Path | None = None) -> Pruned:
    """Remove what was not used for longest until the cache takes `most` bytes or fewer.

    Raises OutputError if a build is using it (its objects must stay until it has linked them), or
    something cannot be removed.
    """
    root = (root or cache_root()).absolute()
    with _alone(root):
        kept, removed = stored(root), []
        size = sum(entry.size for entry in kept)
        while kept and size > most:
            removed.append(kept.pop())
            size -= removed[-1].size
            for path in removed[-1].paths:
                _remove(path)
        return Pruned(tuple(removed), tuple(kept))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """No build uses the cache meanwhile, or begins to."""
    if not root.is_dir():
        yield
        return
    try:
        with open(root / LOCK, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise OutputError(
            f"a build is using the cache {root}; prune it when that is done"
        ) from error
    except PermissionError as error:
        raise OutputError(f"no permission to write in the cache {root}") from error


def _objects(root: Path) -> Iterator[Stored]:
    """Each object with its record and log; half a one, that a killed build left, too."""
    folder, logs = root / "objects", root / "logs"
    for key in sorted({path.stem for path in _files(folder)}):
        record = read_record(folder / f"{key}.json") or {}
        method, backend = record.get("method", "?"), record.get("backend", "?")
        own_logs = logs.glob(f"*-{key[:8]}.log")
        yield _stored(method, backend, folder / f"{key}.json", folder / f"{key}.pte", *own_logs)


def _facts(root: Path) -> Iterator[Stored]:
    for path in _files(root / "facts"):
        yield _stored(None, None, path)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _stored(method: str | None, backend: str | None, *paths: Path) -> Stored:
    there, size, used = [], 0, 0.0
    for path in paths:
        with suppress(FileNotFoundError):
            found = path.stat()
            there.append(path)
            size += found.st_size
            used = max(used, found.st_mtime)
    return Stored(method, backend, size, used, tuple(there))


def _remove(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{path} cannot be removed: {error.strerror}") from error
