"""Which engine runs a program: the native one, compiled at its first use, or the stock one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Literal, get_args

from mmpack.multimethod.errors import CallError, TargetError, nearest
from mmpack.multimethod.runtime.engine import Engine
from mmpack.multimethod.runtime.native import build
from mmpack.multimethod.runtime.native.engine import NativeEngine
from mmpack.multimethod.runtime.stock import StockEngine

EngineName = Literal["auto", "native", "stock"]

LOST = "methods run one at a time, with copies, in the stock engine"

_told: set[str] = set()


Threads = int | None | Mapping[str, int | None]
"""1 for methods that run in the thread that calls them, None for all of ExecuTorch's pool; or that
for each lane that is named."""


def choose(name: str, threads: Threads = None) -> type[Engine]:
    """The engine of a name. "auto" is the native one, built now if it is not there, or else the
    stock one, with a line on stderr that says why.

    Raises CallError if there is no such engine, or it cannot run methods in so many threads;
    TargetError if it is "native" and cannot be built.
    """
    given = threads.values() if isinstance(threads, Mapping) else [threads]
    if not all(one is None or (type(one) is int and one == 1) for one in given):
        raise CallError(
            f"threads={threads!r}: expected 1, or None for all of ExecuTorch's pool; or a mapping "
            "of lanes to these"
        )
    if name not in get_args(EngineName):
        known = ", ".join(map(repr, get_args(EngineName)))
        hint = nearest(name, get_args(EngineName))
        hint = hint if "did you mean" in hint else ""
        raise CallError(f"engine={name!r}: expected one of {known}{hint}")
    if name == "stock":
        if 1 in given:
            raise CallError(f"threads={threads}: the stock engine always runs in all of the pool")
        return StockEngine
    if name == "native":
        _made()
        return NativeEngine
    return _automatic()


def _automatic() -> type[Engine]:
    if build.built() is None and (log := build.failed()) is not None:
        _tell(f"the native engine did not compile earlier (its log: {log})")
        return StockEngine
    try:
        _made()
    except TargetError as error:
        _tell(str(error))
        return StockEngine
    return NativeEngine


def _made() -> None:
    build.extension(build.build(lambda: say("building the native engine, about 15 s, once")))


def _tell(reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        say(f"{reason}; until then {LOST}")


def say(text: str) -> None:
    """A line for whoever watches, and no part of what is printed as a result."""
    if sys.stderr is not None:
        print(f"mmpack: {text}", file=sys.stderr, flush=True)
