"""Objects and what is known of them, on disk, by content.

    <root>/facts/<fingerprint>.json   what exporting a unit told: outputs, buffers it touches
    <root>/objects/<key>.pte + .json  one compiled method, and its figures with a checksum
    <root>/logs/…                     what a compiler printed

Every file appears whole or not at all (written in a folder of its build, then moved), the `.json`
of an object last. So several builds may share a cache, and one that is killed leaves it usable.
Each holds a shared lock on `<root>/lock`, so that nothing is removed (`stored.py`) while it builds;
a `.json` that is taken is touched, which says when it was of use.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.scratch import cache_root, scratch_folder, sweep

SCRATCH = "build"
"""Name of the folders for what is on its way into the cache."""
LOCK = "lock"


@frozen
class Object:
    """A compiled method: its `.pte`, and the figures that its worker gave."""

    key: str
    path: Path
    figures: dict[str, Any]


class Cache:
    """The cache in one folder, for one build: `with Cache(folder) as cache: …`.

    Raises OutputError if the folder cannot be written.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_root()).absolute()
        self._open = ExitStack()
        self._scratch: Path | None = None
        try:
            for name in ("facts", "objects", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            sweep(self.root)
        except OSError as error:
            raise self._unusable(error) from error

    def __enter__(self) -> Self:
        try:
            lock = self._open.enter_context(open(self.root / LOCK, "ab"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError as error:
            raise self._unusable(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def facts(self, fingerprint: str) -> dict[str, Any] | None:
        """What is known of a unit, or None if nothing is, or it is damaged."""
        path = self.root / "facts" / f"{fingerprint}.json"
        if (facts := read_record(path)) is not None:
            _touch(path)
        return facts

    def put_facts(self, fingerprint: str, facts: dict[str, Any]) -> None:
        self._write_json(self.root / "facts" / f"{fingerprint}.json", facts)

    def object(self, key: str) -> Object | None:
        """The object with this key, or None if there is none or it is damaged."""
        about = self.root / "objects" / f"{key}.json"
        record = read_record(about)
        path = self.root / "objects" / f"{key}.pte"
        try:
            if record is None or _checksum(path) != record["crc32"]:
                return None
        except OSError:
            return None
        _touch(about)
        return Object(key, path, record["figures"])

    def has_files_of(self, key: str) -> bool:
        """Whether something is there of an object, be it damaged."""
        return any((self.root / "objects" / f"{key}{end}").exists() for end in (".pte", ".json"))

    def scratch(self, name: str) -> Path:
        """A path for something on its way into the cache; gone when the cache is closed."""
        if self._scratch is None:
            try:
                self._scratch = self._open.enter_context(scratch_folder(self.root, SCRATCH))
            except OSError as error:
                raise self._unusable(error) from error
        return self._scratch / name

    def put_object(
        self,
        key: str,
        made: Path,
        figures: dict[str, Any],
        method: str,
        backend: str,
        told: Mapping[str, Any] | None = None,
    ) -> Object:
        """Move a finished object (a scratch path) into the cache. `method`, `backend` and what is
        `told` besides are for whoever looks what is there; see `earlier.py`."""
        path = self.root / "objects" / f"{key}.pte"
        try:
            record = {"crc32": _checksum(made), "figures": figures}
            record |= {"method": method, "backend": backend, **(told or {})}
            os.replace(made, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        self._write_json(path.with_suffix(".json"), record)
        return Object(key, path, figures)

    def records(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """Of each object its key, when it was last of use (seconds since 1970), and its record."""
        for path in (self.root / "objects").glob("*.json"):
            with suppress(OSError):  # it was pruned
                used = path.stat().st_mtime
                if (record := read_record(path)) is not None:
                    yield path.stem, used, record

    def log(self, method: str, key: str) -> Path:
        """Where the compiler's output for a method goes."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in method)
        return self.root / "logs" / f"{safe[:100]}-{key[:8]}.log"

    def _write_json(self, path: Path, value: dict[str, Any]) -> None:
        scratch = self.scratch(path.name)
        text = json.dumps(value, sort_keys=True)
        try:
            scratch.write_text(f"{zlib.crc32(text.encode()):08x} {text}")
            os.replace(scratch, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the cache {self.root} cannot be used ({error.strerror}); "
            "name another folder with --cache or MMPACK_CACHE"
        )


def read_record(path: Path) -> dict[str, Any] | None:
    """What `_write_json` wrote; None if there is nothing, or it is not what was written."""
    try:
        checksum, _, text = path.read_text().partition(" ")
        if int(checksum, 16) != zlib.crc32(text.encode()):
            return None
        value = json.loads(text)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _touch(path: Path) -> None:
    with suppress(OSError):  # somebody else's file: it only seems to be older than it is
        os.utime(path)


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
