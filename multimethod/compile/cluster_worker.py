"""What a worker of a Dask cluster does for a build: it keeps contents, and compiles units.

`cluster.py` is the other side, and calls these functions. Contents, by their hashes, lie in a
folder of this worker's own, which Dask removes with the worker. The compiler is a process as in a
local build, kept warm, so that one that dies, or prints, does no harm to the worker.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from mmpack.multimethod.compile.process import Job, Worker
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.versions import installed

PACKAGES = ("mmpack", "torch", "executorch", "torchao", "numpy", "sympy")
STALE = 3600.0
"""Seconds after which an object that nobody came for is removed."""
_ROOM = "_mmpack_room"
"""Attribute of a Dask worker that holds its `Room`."""


def versions() -> dict[str, str]:
    """What decides, besides a unit, what its object looks like: name -> version here."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    found |= {package: installed(package) or "none" for package in PACKAGES}
    return found | {"mmpack's code": _own_code()}


@cache
def _own_code() -> str:
    home = Path(__file__).parents[1]
    state = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        state.update(str(path.relative_to(home)).encode() + path.read_bytes())
    return state.hexdigest()[:12]


def lacking(wanted: Mapping[str, int], dask_worker: Any = None) -> list[str]:
    """Which of these contents, hash -> bytes, are not here."""
    folder = room(dask_worker).folder
    return [key for key, size in wanted.items() if _size(folder / key) != size]


def take(
    parts: Sequence[tuple[str, int, bytes]], build: str, dask_worker: Any = None
) -> str | None:
    """Keep contents: (hash, bytes of the whole, the next bytes of it). Returns why they cannot be
    kept, or None."""
    folder = room(dask_worker).folder
    try:
        for key, size, part in parts:
            path = folder / f"{key}.{build}.part"
            with path.open("ab") as file:
                file.write(part)
            if _size(path) == size:
                path.rename(folder / key)
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}"
    return None


def begin(keys: Sequence[str], build: str, dask_worker: Any = None) -> None:
    """Forget what was taken of some contents, which come from the start."""
    for key in keys:
        (room(dask_worker).folder / f"{key}.{build}.part").unlink(missing_ok=True)


def compile_unit(
    method: str, unit: str, backend: str, options: dict[str, Any], code: str, build: str
) -> dict[str, Any]:
    """Compile a unit whose file, and all that it refers to, is here by its hash.

    code: digest of the user's code that it brings along, "" without any. Returns the worker's
    figures and memory, or an error; what was printed; and where the object is (`fetch`), its bytes
    and hash.
    """
    from distributed import get_worker

    own = get_worker()
    place = room(own)
    try:
        found = BACKENDS[backend].available()
        if not found.builds:
            message = f"{method}: cannot build for {backend} there: {found.detail}"
            return {"error": f"{message}; to change that: {found.remedy}"}
        environment = BACKENDS[backend].environment(BACKENDS[backend].options(options))
        place.sweep()
        job = Job(
            method=method,
            unit=place.folder / unit,
            backend=backend,
            output=place.folder / f"{unit}.{build}.pte",
            log=place.folder / f"{unit}.{build}.log",
            environment=environment,
            contents=place.folder,
        )
        return place.compile(job, code, build, own.state.nthreads)
    except OSError as error:
        return {"error": f"{method}: {error}", "unwritten": True}


def fetch(name: str, offset: int, size: int, dask_worker: Any = None) -> bytes:
    """A part of an object."""
    with (room(dask_worker).folder / name).open("rb") as file:
        file.seek(offset)
        return file.read(size)


def drop(names: Sequence[str], dask_worker: Any = None) -> None:
    """Remove what a build has no more use for."""
    for name in names:
        (room(dask_worker).folder / name).unlink(missing_ok=True)


def stop(build: str, dask_worker: Any = None) -> None:
    """Kill the compiler if it is at work for that build."""
    room(dask_worker).stop(build)


def room(dask_worker: Any) -> Room:
    """That of a Dask worker, made at its first use."""
    if not hasattr(dask_worker, _ROOM):
        setattr(dask_worker, _ROOM, Room(Path(dask_worker.local_directory) / "mmpack"))
    found: Room = getattr(dask_worker, _ROOM)
    return found


class Room:
    """A folder of contents, and a compiler."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._compiler: Worker | None = None
        self._code = ""
        self._build: str | None = None
        # A thread of its own: on Linux a process ends with the thread that started it.
        self._thread = ThreadPoolExecutor(1, "mmpack")

    def compile(self, job: Job, code: str, build: str, threads: int) -> dict[str, Any]:
        return self._thread.submit(self._compile, job, code, build, threads).result()

    def _compile(self, job: Job, code: str, build: str, threads: int) -> dict[str, Any]:
        compiler = self._warm(job, code, build)
        answer = compiler.run(job, threads)
        with self._lock:
            self._build = None
            if not compiler.alive:
                compiler.close()
                self._compiler = None
        log = job.log.read_bytes() if job.log.exists() else b""
        job.log.unlink(missing_ok=True)
        given = {"log": log, "memory": answer.memory, "unwritten": answer.unwritten}
        if answer.error is not None:
            job.output.unlink(missing_ok=True)
            return {**given, "error": answer.error.removesuffix(f"\n  log: {job.log}")}
        with job.output.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        place = {"object": job.output.name, "size": _size(job.output), "hash": found}
        return {**given, **place, "figures": answer.figures}

    def _warm(self, job: Job, code: str, build: str) -> Worker:
        """The compiler that is here, or another one if that wants another environment, or has run
        other code of a user's."""
        with self._lock:
            self._build = build
            old = self._compiler
            other = bool(code and self._code) and code != self._code
            if old is not None and (other or old.environment != job.environment):
                old.close()
                self._compiler = None
            if self._compiler is None:
                self._compiler, self._code = Worker(job.log, job.environment), ""
            self._code = code or self._code
            return self._compiler

    def stop(self, build: str) -> None:
        with self._lock:
            if self._build == build and self._compiler is not None:
                self._compiler.kill()

    def close(self) -> None:
        """End the compiler; it ends with the Dask worker anyhow."""
        with self._lock:
            if self._compiler is not None:
                self._compiler.kill()
        self._thread.shutdown()

    def sweep(self) -> None:
        """Remove what builds left that were killed."""
        before = time.time() - STALE
        for path in self.folder.iterdir():
            if path.suffix in (".part", ".pte", ".log") and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1
