"""The processor that a method occupies while it runs, and in how many threads it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from mmpack.multimethod.errors import CallError, nearest
from mmpack.multimethod.link import MethodRecord
from mmpack.multimethod.runtime.engines import Threads
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.targets.base import CPU


def lane_of(record: MethodRecord | None, delegates: Collection[str]) -> str:
    """As the manifest says, else as the method's backend, or the delegates in it, tell."""
    if record is not None and record.lane:
        return record.lane
    if record is not None and record.backend in BACKENDS:
        return BACKENDS[record.backend].lane
    special = (b.lane for b in BACKENDS.values() if b.delegate in delegates and b.lane != CPU)
    return next(special, CPU)


def alone(path: Path, lanes: Mapping[str, str], threads: Threads) -> frozenset[str]:
    """The methods that run in the thread that calls them. lanes: of all methods. Raises CallError
    for a lane that none is on."""
    if not isinstance(threads, Mapping):
        return frozenset(lanes) if threads == 1 else frozenset()
    known = set(lanes.values())
    for lane in threads.keys() - known:
        raise CallError(
            f"{path}: threads: no method is on lane {lane!r}{nearest(lane, sorted(known))}"
        )
    return frozenset(name for name, lane in lanes.items() if threads.get(lane) == 1)
