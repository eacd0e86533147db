"""Objects and what is known of them, on disk, by content.

    <root>/facts/<fingerprint>.json   what exporting a unit told: outputs, buffers it touches
    <root>/objects/<key>.pte + .json  one compiled method, and its figures with a checksum
    <root>/logs/…                     what a compiler printed

Every file appears whole or not at all (written under a temporary name, then moved), the `.json`
of an object last. So several builds may share a cache, and one that is killed leaves it usable.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

from attrs import frozen

from mmpack.multimethod.errors import OutputError

STALE_SECONDS = 24 * 3600
"""Temporary files older than this were left by a build that was killed."""


@frozen
class Object:
    """A compiled method: its `.pte`, and the figures that its worker gave."""

    key: str
    path: Path
    figures: dict[str, Any]


def default_root() -> Path:
    """`$MMPACK_CACHE`, or `mmpack` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if own := os.environ.get("MMPACK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmpack"


class Cache:
    """The cache in one folder. Raises OutputError if the folder cannot be written."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()
        try:
            for name in ("facts", "objects", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise OutputError(
                f"the cache {self.root} cannot be used ({error.strerror}); "
                "name another folder with --cache or MMPACK_CACHE"
            ) from error

    def facts(self, fingerprint: str) -> dict[str, Any] | None:
        """What is known of a unit, or None."""
        return _read_json(self.root / "facts" / f"{fingerprint}.json")

    def put_facts(self, fingerprint: str, facts: dict[str, Any]) -> None:
        self._write_json(self.root / "facts" / f"{fingerprint}.json", facts)

    def object(self, key: str) -> Object | None:
        """The object with this key, or None if there is none or it is damaged."""
        record = _read_json(self.root / "objects" / f"{key}.json")
        path = self.root / "objects" / f"{key}.pte"
        if record is None or not path.exists() or _checksum(path) != record.get("crc32"):
            return None
        return Object(key, path, record["figures"])

    def scratch(self, key: str, ending: str) -> Path:
        """A temporary path of this process for something on its way into the cache."""
        return self.root / "objects" / f".{key}.{os.getpid()}{ending}.tmp"

    def put_object(self, key: str, made: Path, figures: dict[str, Any]) -> Object:
        """Move a finished object (a scratch path) into the cache."""
        path = self.root / "objects" / f"{key}.pte"
        record = {"crc32": _checksum(made), "figures": figures}
        try:
            os.replace(made, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        self._write_json(path.with_suffix(".json"), record)
        return Object(key, path, figures)

    def log(self, method: str, key: str) -> Path:
        """Where the compiler's output for a method goes."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in method)
        return self.root / "logs" / f"{safe}-{key[:8]}.log"

    def _write_json(self, path: Path, value: dict[str, Any]) -> None:
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            scratch.write_text(json.dumps(value, sort_keys=True))
            os.replace(scratch, path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error

    def _sweep(self) -> None:
        limit = time.time() - STALE_SECONDS
        for folder in ("facts", "objects"):
            for path in (self.root / folder).glob(".*.tmp"):
                try:
                    if path.stat().st_mtime < limit:
                        path.unlink()
                except FileNotFoundError:
                    continue  # another build swept it


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
