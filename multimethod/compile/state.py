"""Which buffers are state, and which of them are one memory for several methods.

A buffer that some method changes is state. If two methods reach it, the spec must say whether
they share it or each have their own: that is never guessed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch
from attrs import frozen

from mmpack.multimethod.collect import Collected
from mmpack.multimethod.compile.model import model_error
from mmpack.multimethod.errors import ModelError, nearest
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


def decide(spec_file: SpecFile, touched: Mapping[str, Touched], *, whole: bool = True) -> State:
    """Settle every buffer. Raises ModelError for one that two methods reach and the spec does not
    mention (naming both methods), and for a pattern of the spec that matches no state buffer.

    whole: these are all methods, so a buffer that none of them touches is touched by none.
    """
    wanted = spec_file.spec.state
    users: dict[str, list[str]] = {}
    writers: dict[str, list[str]] = {}
    for method, t in touched.items():
        for buffer in sorted(t.mutated | t.read):
            users.setdefault(buffer, []).append(method)
        for buffer in t.mutated:
            writers.setdefault(buffer, []).append(method)
    found = Collected()
    shared: dict[str, tuple[str, ...]] = {}
    private: dict[str, tuple[str, ...]] = {}
    unsaid: list[str] = []
    for buffer in sorted(writers):
        methods = tuple(users[buffer])
        with found.gather():
            _require_one(spec_file, buffer)
        if _matches(buffer, wanted.shared):
            shared[buffer] = methods
        elif _matches(buffer, wanted.private) or len(methods) == 1:
            private[buffer] = tuple(m for m in methods if buffer in touched[m].mutated)
        else:
            unsaid.append(buffer)
    with found.gather():
        _require_said(spec_file, unsaid, writers, users, touched)
    if whole:
        for key, patterns in (("shared", wanted.shared), ("private", wanted.private)):
            _require_matches(spec_file, key, patterns, writers, found)
        _require_sharing(spec_file, wanted.shared, shared, found)
    found.check()
    marks = {m: frozenset(b for b in t.read if b in shared) for m, t in touched.items()}
    return State(shared, private, marks)


def require_own_memory(
    spec_file: SpecFile, tensors: Mapping[str, torch.Tensor], touched: Mapping[str, Touched]
) -> None:
    """Refuse a buffer that a method changes and that is a part of another tensor, or has a part
    that is. `tensors`: the parameters and buffers that methods reach, by their names."""
    together: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            together.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    for method, t in touched.items():
        for buffer in sorted(t.mutated & tensors.keys()):
            tensor = tensors[buffer]
            for name in together.get(tensor.untyped_storage().data_ptr(), ()):
                if tensors[name] is not tensor:
                    both = " and ".join(map(repr, sorted((buffer, name))))
                    message = (
                        f"method {method!r} changes memory that {both} have in common; in a "
                        "program each has its own, so make one of them a clone of the other"
                    )
                    keys = ("methods", method)
                    raise ModelError(str(spec_file.mistake(keys, message, at_key=True)))


def _require_one(spec_file: SpecFile, buffer: str) -> None:
    wanted = spec_file.spec.state
    if _matches(buffer, wanted.shared) and _matches(buffer, wanted.private):
        message = f"buffer {buffer!r} is listed both as shared and as private"
        raise model_error(spec_file, ("state",), message)


def _require_said(
    spec_file: SpecFile,
    unsaid: Sequence[str],
    writers: Mapping[str, Sequence[str]],
    users: Mapping[str, Sequence[str]],
    touched: Mapping[str, Touched],
) -> None:
    """Every buffer that two methods reach must be mentioned."""
    if not unsaid:
        return
    buffer, others = unsaid[0], list(unsaid[1:])
    writer = writers[buffer][0]
    other = next(m for m in users[buffer] if m != writer)
    verb = "changed by" if buffer in touched[other].mutated else "read by"
    more = ""
    if others:
        names = ", ".join(map(repr, others[:8])) + (", …" if len(others) > 8 else "")
        more = f". The same must be said of {len(others)} more: {names}"
    keys = ("state",) if "state" in spec_file.source.data else ("methods", writer)
    message = (
        f"buffer {buffer!r} is changed by method {writer!r} and {verb} method {other!r}; "
        f"list it under `state: {{shared: [{buffer}]}}` to make it one memory, or under "
        f"`private` to give each method its own{more}"
    )
    raise ModelError(str(spec_file.mistake(keys, message, at_key=True)))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require_matches(
    spec_file: SpecFile,
    key: str,
    patterns: Iterable[str],
    buffers: Iterable[str],
    found: Collected,
) -> None:
    names = list(buffers)
    for index, pattern in enumerate(patterns):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            message = f"no method changes a buffer called {pattern!r}{nearest(pattern, names)}"
            with found.gather():
                raise model_error(spec_file, ("state", key, index), message)


def _require_sharing(
    spec_file: SpecFile,
    patterns: Iterable[str],
    shared: Mapping[str, tuple[str, ...]],
    found: Collected,
) -> None:
    """A pattern under `shared` must make two methods meet in at least one of its buffers."""
    for index, pattern in enumerate(patterns):
        alone = {b: m for b, m in shared.items() if fnmatch.fnmatchcase(b, pattern)}
        if alone and all(len(methods) == 1 for methods in alone.values()):
            reached = ", ".join(f"{b!r} only by {m[0]!r}" for b, m in alone.items())
            with found.gather():
                raise model_error(
                    spec_file,
                    ("state", "shared", index),
                    f"no two methods reach one buffer of {pattern!r}: {reached}. A buffer that a "
                    "wrapper makes belongs to its own method; to share one, register it in the "
                    "model",
                )
