"""Units compiled by the workers of a Dask cluster: `with connected(address) as cluster: …`.

Each Dask worker compiles one unit at a time and gets it from a thread here: what that worker lacks
of the unit and its contents is sent in pieces, and the object comes back in pieces, so that nobody
on the way holds a large one in memory. The unit of a worker that is lost goes to another one; a
worker that comes later takes part.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmpack.multimethod.compile import cluster_worker as there
from mmpack.multimethod.compile.contents import Slice
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.compile.unit_file import UnitFile, read_about
from mmpack.multimethod.errors import ClusterError, counted

EXTRA = "pip install 'mmpack[cluster]'"
"""Installs what only clusters need."""
PATIENCE = 10.0
"""Seconds to wait for the scheduler, and for its first worker."""
GRACE = 60.0
"""Seconds to wait for another worker when all are gone."""
ATTEMPTS = 3
"""Workers that may be lost at one unit, before it is not tried again."""
PIECE = 16 << 20
"""Bytes that are sent at once."""
POLL = 0.5


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster of the Dask scheduler at an address (`tcp://host:8786`).

    Raises ClusterError if Dask is not installed here, the scheduler cannot be reached, has no
    worker, or one whose versions, or mmpack's code, are not those here.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"building on a cluster needs the package distributed, which is missing: {EXTRA}"
        ) from error
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False, name="mmpack")
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler can be reached at {address!r}: {_told(error)}; expected an address "
            "as `dask scheduler` prints it, such as tcp://host:8786"
        ) from error
    try:
        cluster = Cluster(client, address)
        cluster.require_workers()
        yield cluster
    finally:
        client.close()


class Cluster:
    """A connected one."""

    def __init__(self, client: Any, address: str) -> None:
        self.client = client
        self.address = address

    def workers(self) -> frozenset[str]:
        """Addresses of the workers that there are now. Raises ClusterError if the scheduler is
        gone."""
        try:
            return frozenset(self.client.nthreads())
        except Exception as error:
            raise ClusterError(
                f"the Dask scheduler at {self.address} is lost: {_told(error)}; what was compiled "
                "is in the cache"
            ) from error

    def call(self, address: str, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of `cluster_worker.py` gives there. Raises whatever goes wrong."""
        return self.client.run(function, *args, workers=[address])[address]

    def require_workers(self) -> None:
        end = time.monotonic() + PATIENCE
        while not (found := self.workers()):
            if time.monotonic() > end:
                raise ClusterError(
                    f"the Dask scheduler at {self.address} has no workers; start some: "
                    f"dask worker {self.address}"
                )
            time.sleep(POLL)
        for address in sorted(found):
            self.require_versions(address)

    def require_versions(self, address: str) -> None:
        """Raise ClusterError unless a worker has what is installed here."""
        try:
            theirs = self.call(address, there.versions)
        except Exception as error:
            raise ClusterError(
                f"the worker {address} cannot run mmpack ({_told(error)}); install there what is "
                "installed here"
            ) from error
        wrong = [
            f"{name} is {theirs.get(name)} there and {own} here"
            for name, own in there.versions().items()
            if theirs.get(name) != own
        ]
        if wrong:
            raise ClusterError(
                f"the worker {address} would make other objects: {', '.join(wrong)}; install there "
                "what is installed here"
            )

    def run_jobs(
        self,
        jobs: Sequence[Job],
        started: Callable[[Job], None],
        finished: Callable[[Answer], None],
    ) -> list[Answer]:
        """Like `pool.run_jobs`, on the cluster's workers."""
        crew = _Crew(self, jobs, started, finished)
        crew.run()
        return [crew.answers[job.method] for job in jobs]


class _Lost(Exception):
    """A worker cannot be spoken to any more."""


class _Crew:
    """A thread for each worker. `changed` guards all of it, and the two callbacks."""

    def __init__(
        self,
        cluster: Cluster,
        jobs: Sequence[Job],
        started: Callable[[Job], None],
        finished: Callable[[Answer], None],
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self._cluster = cluster
        self._jobs = len(jobs)
        self._queue = deque(jobs)
        self._started = started
        self._finished = finished
        self._build = uuid.uuid4().hex[:12]
        self._changed = threading.Condition()
        self._workers: frozenset[str] = frozenset()
        self._lost: dict[str, list[str]] = {}
        """Method -> why workers were lost that were at it."""
        self._told: set[str] = set()
        self._broken: list[BaseException] = []
        self._stopped = False

    def run(self) -> None:
        threads: dict[str, threading.Thread] = {}
        try:
            seen = time.monotonic()
            while not self._over():
                found = self._cluster.workers()
                with self._changed:
                    self._workers = found
                if found:
                    seen = time.monotonic()
                elif time.monotonic() > seen + GRACE:
                    raise ClusterError(f"all workers of {self._cluster.address} are lost")
                for address in found:
                    if address not in threads or not threads[address].is_alive():
                        if address not in threads:
                            self._cluster.require_versions(address)
                        threads[address] = threading.Thread(
                            target=self._serve, args=(address,), daemon=True
                        )
                        threads[address].start()
                with self._changed:  # in slices, so that Ctrl-C is heard
                    self._changed.wait(POLL)
        except BaseException:
            self._stop()
            raise
        finally:
            for thread in threads.values():
                thread.join()
        if self._broken:
            self._stop()
            raise self._broken[0]

    def _over(self) -> bool:
        with self._changed:
            return self._stopped or bool(self._broken) or len(self.answers) == self._jobs

    def _stop(self) -> None:
        """Take no more jobs, and have workers kill the compilers that are at ours."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        with suppress(Exception):
            self._cluster.client.run(
                there.stop, self._build, workers=list(self._workers), on_error="ignore"
            )

    def _serve(self, address: str) -> None:
        """Have one worker compile, until all is done or it is lost."""
        try:
            while (job := self._next(address)) is not None:
                try:
                    answer = self._compile(address, job)
                except _Lost as lost:
                    if not self._over():
                        self._again(address, job, lost)
                    return
                self._answered(answer)
        except BaseException as error:
            with self._changed:
                self._broken.append(error)
                self._changed.notify_all()

    def _next(self, address: str) -> Job | None:
        """The next job. While there is none, others may still give theirs back."""
        with self._changed:
            while True:
                if self._stopped or self._broken or len(self.answers) == self._jobs:
                    return None
                if address not in self._workers:
                    return None
                if self._queue:
                    job = self._queue.popleft()
                    if job.method not in self._told:
                        self._told.add(job.method)
                        self._started(job)
                    return job
                self._changed.wait(POLL)

    def _answered(self, answer: Answer) -> None:
        with self._changed:
            if not self._stopped and not self._broken:
                self.answers[answer.job.method] = answer
                self._finished(answer)
            self._changed.notify_all()

    def _again(self, address: str, job: Job, lost: _Lost) -> None:
        """Have another worker do it; but not for ever, since it may be what ends them."""
        self._cluster.workers()  # or it is the scheduler that is lost
        reasons = self._lost.setdefault(job.method, [])
        reasons.append(f"{address}: {lost}")
        if len(reasons) < ATTEMPTS:
            with self._changed:
                self._queue.appendleft(job)
                self._changed.notify_all()
            return
        said = "\n  ".join(reasons)
        message = f"{job.method}: {counted(ATTEMPTS, 'worker')} of the cluster were lost at it"
        self._answered(Answer(job, {}, f"{message}\n  {said}"))

    def _compile(self, address: str, job: Job) -> Answer:
        """Raises _Lost if the worker is."""
        about, unit = read_about(job.unit), job.unit.read_bytes()
        key = hashlib.sha256(unit).hexdigest()
        try:
            error = self._send(address, about, key, unit)
        except OSError as failed:
            error = f"{job.method}: what it refers to cannot be read: {failed}"
        if error is not None:
            return self._failed(job, address, error, unwritten=True)
        future = self._cluster.client.submit(
            there.compile_unit,
            *(about.method, key, about.backend, about.options, about.code.digest, self._build),
            workers=[address],
            key=f"mmpack-{uuid.uuid4().hex}",
            pure=False,
        )
        done = self._wait(address, future)
        try:
            job.log.write_bytes(done.get("log", b""))
        except OSError as failed:
            return Answer(job, {}, f"{job.method}: its log cannot be written: {failed.strerror}")
        if "error" in done:
            self._call(address, there.drop, [key])
            return self._failed(job, address, done["error"], done.get("unwritten", False))
        answer = self._receive(address, job, done)
        with suppress(_Lost):  # it is here; what the worker has of it, it sweeps
            self._call(address, there.drop, [key, done["object"]])
        return answer

    def _failed(self, job: Job, address: str, error: str, unwritten: bool) -> Answer:
        told = f"{error}\n  on: {address}\n  log: {job.log}"
        return Answer(job, {}, told, unwritten)

    def _send(self, address: str, about: UnitFile, key: str, unit: bytes) -> str | None:
        """Bring a worker what it lacks of a unit. Returns why it cannot keep that, or None."""
        places = {place.hash: place for place in about.contents()}
        sizes = {place.hash: place.size for place in places.values()} | {key: len(unit)}
        wanted = self._call(address, there.lacking, sizes)
        self._call(address, there.begin, wanted, self._build)
        parts = (
            (content, sizes[content], part)
            for content in wanted
            for part in (_pieces(unit) if content == key else _pieces_of(places[content]))
        )
        for some in _together(parts):
            error: str | None = self._call(address, there.take, some, self._build)
            if error is not None:
                return f"{about.method}: {error}"
        return None

    def _wait(self, address: str, future: Any) -> dict[str, Any]:
        while True:
            with self._changed:
                gone = self._stopped or bool(self._broken) or address not in self._workers
            if gone:
                future.cancel()
                raise _Lost("it is gone")
            try:
                result: dict[str, Any] = future.result(timeout=POLL)
                return result
            except TimeoutError:
                if future.done():  # that is what it raised
                    raise _Lost("TimeoutError") from None
            except Exception as error:
                raise _Lost(_told(error)) from error

    def _receive(self, address: str, job: Job, done: Mapping[str, Any]) -> Answer:
        state = hashlib.sha256()
        offset = 0
        try:
            with job.output.open("wb") as file:
                while offset < done["size"]:
                    part = self._call(address, there.fetch, done["object"], offset, PIECE)
                    if not part:
                        raise _Lost("the object is cut off")
                    state.update(part)
                    offset += len(part)
                    file.write(part)
        except OSError as error:  # of this machine
            return Answer(job, {}, f"{job.method}: {error}", unwritten=True)
        if state.hexdigest() != done["hash"]:
            raise _Lost("the object is damaged")
        return Answer(job, done["figures"], None, memory=done["memory"])

    def _call(self, address: str, function: Callable[..., Any], *args: Any) -> Any:
        with self._changed:
            if self._stopped or self._broken:
                raise _Lost("the build is stopped")
        try:
            return self._cluster.call(address, function, *args)
        except Exception as error:
            raise _Lost(_told(error)) from error


def _pieces(data: bytes) -> Iterator[bytes]:
    for offset in range(0, len(data), PIECE):
        yield data[offset : offset + PIECE]


def _pieces_of(place: Slice) -> Iterator[bytes]:
    if not place.size:
        yield b""
    with Path(place.path).open("rb") as file:
        file.seek(place.offset)
        left = place.size
        while left:
            part = file.read(min(left, PIECE))
            if not part:
                raise OSError(f"{place.path} ends early")
            left -= len(part)
            yield part


def _together(parts: Iterable[tuple[str, int, bytes]]) -> Iterator[list[tuple[str, int, bytes]]]:
    """Small ones are sent at once."""
    some: list[tuple[str, int, bytes]] = []
    size = 0
    for part in parts:
        some.append(part)
        size += len(part[2])
        if size >= PIECE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _told(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
