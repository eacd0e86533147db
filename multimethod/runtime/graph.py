"""Calls that wait for each other, handed to an engine as a whole: it runs them on threads of its
own and needs Python for none of them.

    graph = methods.graph([Call("qkv", inputs=(Rows(0, 0, 0, 64),)), …])   # None: it cannot
    graph.run([hidden, cache, …], ranks, waits=False, workers=(1, 1))

What a call gives goes to later calls, and to rows of tensors that the caller has: straight there
where the method writes to memory of its caller's (`io: caller`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen
from torch import Tensor


@frozen
class Rows:
    """`length` rows from `start` on, along an axis of one of the tensors that a run is given."""

    tensor: int
    axis: int
    start: int
    length: int


@frozen
class Result:
    """An output of an earlier call, both by number."""

    call: int
    output: int


@frozen
class Call:
    """One call, whose number is its place among all. method: None if there is nothing to be done.

    before: calls that must be over before it, those whose results it takes among them. inputs: in
    the order of the signature. copies: (output, where as many of its rows as there is room for go).
    """

    method: str | None
    lane: int = 0
    before: tuple[int, ...] = ()
    inputs: tuple[Rows | Result, ...] = ()
    copies: tuple[tuple[int, Rows], ...] = ()


Ran = tuple[int, int, float, float]
"""A call, the worker of its lane that ran it, and when: seconds of `time.perf_counter`."""


class CallsFailed(Exception):
    """A call failed; the first one by number, if several did. `error` says how."""

    def __init__(self, call: int, error: Exception) -> None:
        super().__init__(call, error)
        self.call = call
        self.error = error


class Graph(Protocol):
    """Calls, settled once and run any number of times."""

    def run(
        self,
        tensors: Sequence[Tensor],
        ranks: Sequence[int],
        *,
        waits: bool,
        workers: Sequence[int],
        delays: Sequence[int] = (),
    ) -> list[Ran]:
        """Run all calls, each after those that it waits for, no two of one method at once, and
        each lane on so many threads as `workers` says.

        tensors: on the CPU, of the dtypes and sizes that the signatures of the methods want of
        those rows. ranks: for each call how urgent it is, 0 most. waits: whether a lane waits for
        its most urgent call to become ready; else another overtakes it. delays: for tests,
        microseconds to sleep before each call; if negative, the thread ends there.

        Raises CallsFailed. However it ends, by KeyboardInterrupt too, all threads have ended.
        """
        ...
