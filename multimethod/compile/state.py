"""Which buffers are state, and which of them are one memory for several methods.

A buffer that some method changes is state. If two methods reach it, the spec must say whether
they share it or each have their own: that is never guessed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from attrs import frozen

from mmpack.multimethod.compile.model import model_error
from mmpack.multimethod.errors import nearest
from mmpack.multimethod.spec import SpecFile


@frozen
class Touched:
    """Buffers, by their name in the model, that one method changes, and that it only reads."""

    mutated: frozenset[str]
    read: frozenset[str]


@frozen
class State:
    """Buffers that methods share, those that each method has its own copy of, and for each method
    the shared buffers that it only reads (these must be marked as state before lowering)."""

    shared: Mapping[str, tuple[str, ...]]
    private: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, frozenset[str]]


def decide(spec_file: SpecFile, touched: Mapping[str, Touched]) -> State:
    """Settle every buffer. Raises ModelError for one that two methods reach and the spec does not
    mention (naming both methods), and for a pattern of the spec that matches no state buffer."""
    wanted = spec_file.spec.state
    users: dict[str, list[str]] = {}
    writers: dict[str, list[str]] = {}
    for method, t in touched.items():
        for buffer in sorted(t.mutated | t.read):
            users.setdefault(buffer, []).append(method)
        for buffer in t.mutated:
            writers.setdefault(buffer, []).append(method)
    shared: dict[str, tuple[str, ...]] = {}
    private: dict[str, tuple[str, ...]] = {}
    for buffer in sorted(writers):
        methods = tuple(users[buffer])
        if _matches(buffer, wanted.shared) and _matches(buffer, wanted.private):
            raise model_error(
                spec_file, ("state",), f"buffer {buffer!r} is listed both as shared and as private"
            )
        if _matches(buffer, wanted.shared):
            shared[buffer] = methods
        elif _matches(buffer, wanted.private) or len(methods) == 1:
            private[buffer] = tuple(m for m in methods if buffer in touched[m].mutated)
        else:
            writer = writers[buffer][0]
            other = next(m for m in methods if m != writer)
            verb = "changed by" if buffer in touched[other].mutated else "read by"
            raise model_error(
                spec_file,
                ("state",),
                f"buffer {buffer!r} is changed by method {writer!r} and {verb} method {other!r}; "
                f"list it under `state: {{shared: [{buffer}]}}` to make it one memory, or under "
                "`private` to give each method its own",
            )
    _require_matches(spec_file, "shared", wanted.shared, writers)
    _require_matches(spec_file, "private", wanted.private, writers)
    _require_sharing(spec_file, wanted.shared, shared)
    marks = {m: frozenset(b for b in t.read if b in shared) for m, t in touched.items()}
    return State(shared, private, marks)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require_matches(
    spec_file: SpecFile, key: str, patterns: Iterable[str], buffers: Iterable[str]
) -> None:
    names = list(buffers)
    for index, pattern in enumerate(patterns):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise model_error(
                spec_file,
                ("state", key, index),
                f"no method changes a buffer called {pattern!r}{nearest(pattern, names)}",
            )


def _require_sharing(
    spec_file: SpecFile, patterns: Iterable[str], shared: Mapping[str, tuple[str, ...]]
) -> None:
    """A pattern under `shared` must make two methods meet in at least one of its buffers."""
    for index, pattern in enumerate(patterns):
        alone = {b: m for b, m in shared.items() if fnmatch.fnmatchcase(b, pattern)}
        if all(len(methods) == 1 for methods in alone.values()):
            reached = ", ".join(f"{b!r} only by {m[0]!r}" for b, m in alone.items())
            raise model_error(
                spec_file,
                ("state", "shared", index),
                f"no two methods reach one buffer of {pattern!r}: {reached}. A buffer that a "
                "wrapper makes belongs to its own method; to share one, register it in the model",
            )
