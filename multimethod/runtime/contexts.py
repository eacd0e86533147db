"""Delegates that the runtime keeps one of per process, whichever program brings them.

A QNN context carries a number. The runtime gives a second load of that number the first one's
context, and destroys it with whichever is released first: the other then fails, or runs on memory
that is gone. So a program whose numbers are in use is loaded with numbers of its own.
"""

from __future__ import annotations

import mmap
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmpack.multimethod.link import PteFile
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.targets import BACKENDS

HEAD = 64
"""Bytes of a delegate's data in which its backend finds what tells it apart."""

Contexts = Mapping[int, bytes]
"""Offset in the file -> what stands there: a context's name."""


def read_contexts(file: PteFile) -> dict[int, bytes]:
    """The names of all contexts in a program."""
    backends = {b.delegate: b for b in BACKENDS.values() if b.delegate is not None}
    found: dict[int, bytes] = {}
    for plan in file.plans:
        extents = delegate_extents(file, plan)
        for delegate, extent in zip(plan.delegates or (), extents, strict=True):
            if (backend := backends.get(delegate.id or "")) is None:
                continue
            head = file.read(extent.offset, min(HEAD, extent.size))
            if (where := backend.identity(head)) is not None:
                found[extent.offset + where.start] = head[where]
    return found


def renamed(path: Path, contexts: Contexts, taken: Iterable[bytes]) -> bytes | None:
    """The program with other names for its contexts, if one of them is among those taken; the
    same name twice in the program stays one. None if its own will do."""
    if not set(contexts.values()) & set(taken):
        return None
    new = {name: secrets.token_bytes(len(name)) for name in set(contexts.values())}
    parts, at = [], 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for offset in sorted(contexts):
            name = contexts[offset]
            parts += [data[at:offset], new[name]]
            at = offset + len(name)
        return b"".join([*parts, data[at:]])
