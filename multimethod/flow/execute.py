"""A plan run serially: the input cut in pieces, each piece through all steps, caches grown.

prefill, decode = program.flow("prefill"), program.flow("decode")
context = Context()
logits = prefill.run(tokens, context=context).logits
logits = decode.run(next_token, context=context).logits   # goes on where prefill stopped
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from attrs import define, field
from torch import Tensor

from mmpack.multimethod.errors import FlowError, counted, nearest
from mmpack.multimethod.flow.plan import CacheSpec, Cut, Plan
from mmpack.multimethod.spec.flow_walk import POSITIONS


class Callables(Protocol):
    """Methods by name; each takes its inputs by name and gives a named tuple."""

    def __getitem__(self, name: str, /) -> Callable[..., Any]: ...

    def last_call(self, name: str, /) -> int:
        """A number that the last call of a method with state has to itself; 0 if its state is what
        it was at the beginning."""
        ...


@define
class Context:
    """What runs of a program's flows have in common: how many rows were fed so far, and the
    caches, each with room for its dim's maximum. A new context is a new conversation.

    state: each buffer of the program that steps keep rows in -> the last call that reached it when
    the context was fed. There is one of each, so a context goes on only as long as these are its.
    """

    position: int = 0
    caches: dict[str, Tensor] = field(factory=dict)
    state: dict[str, int] = field(factory=dict)


class Flow:
    """A flow of a loaded program, or of whatever `methods` are. lanes: method -> the processor that
    it occupies; one for all where nothing is said."""

    def __init__(
        self, plan: Plan, methods: Callables, lanes: Mapping[str, str] | None = None
    ) -> None:
        self.plan = plan
        self.lanes = dict(lanes or {})
        self._methods = methods
        self._result = namedtuple(f"{plan.name}_outputs", list(plan.joins))  # type: ignore[misc]

    def run(self, *args: Tensor, context: Context | None = None, **kwargs: Tensor) -> Any:
        """Run the flow on whole inputs, of any length that its caches, and the state of its steps,
        have room for.

        Returns a named tuple of its outputs, each as long as the input along the axis that it is
        cut along. With a `context` the run continues after what that context has seen; without
        one it starts afresh. Raises FlowError for inputs that do not fit, and for a context that
        goes on while the program's state is not its own; a context is then as it was.
        """
        context = context if context is not None else Context()
        inputs = self._bind(args, kwargs)
        length = self._length(inputs)
        self._require_own(context)
        self._require_room(context, length)
        pieces: dict[str, list[Tensor]] = {name: [] for name in self.plan.joins}
        begin = context.position
        try:
            for start in range(0, length, self.plan.size):
                rows = min(self.plan.size, length - start)
                given = {
                    name: _piece(inputs[name], cut, start, rows)
                    for name, cut in self.plan.cuts.items()
                }
                values = self._run_piece(given, rows, context)
                context.position += rows
                for name, axis in self.plan.joins.items():
                    pieces[name].append(values[name].narrow(axis, 0, rows))
        except BaseException:
            self._rewind(context, begin)
            raise
        finally:
            context.state = self._last_calls()
        return self._result(
            *(torch.cat(pieces[name], dim=axis) for name, axis in self.plan.joins.items())
        )

    def _run_piece(
        self, values: dict[str, Tensor], rows: int, context: Context
    ) -> dict[str, Tensor]:
        """One piece through all steps. Padded rows repeat the position of the last real one, so
        that no table is indexed beyond what the caller asked for."""
        first = context.position
        values[POSITIONS] = first + torch.arange(self.plan.size).clamp(max=rows - 1)
        for step in self.plan.steps:
            result = self._methods[step.method](
                **{
                    name: self._cached(source, first + rows, context)
                    if source in self.plan.caches
                    else values[source]
                    for name, source in step.inputs
                }
            )
            for output, cache in step.appends:
                self._append(cache, getattr(result, output), rows, context)
            for output, name in step.outputs:
                values[name] = getattr(result, output)
        return values

    def _rewind(self, context: Context, position: int) -> None:
        """Forget what a run that failed has fed: caches are zero beyond what they hold."""
        context.position = position
        for name, spec in self.plan.caches.items():
            if name in context.caches:
                rest = spec.dim.max - position
                context.caches[name].narrow(spec.axis, position, rest).zero_()

    def _append(self, name: str, piece: Tensor, rows: int, context: Context) -> None:
        spec = self.plan.caches[name]
        cache = self._storage(name, spec, context)
        cache.narrow(spec.axis, context.position, rows).copy_(piece.narrow(spec.axis, 0, rows))

    def _storage(self, name: str, spec: CacheSpec, context: Context) -> Tensor:
        """A cache's memory, allocated whole at its first use, so that growing copies nothing."""
        if name not in context.caches:
            shape, dtype = _memory(spec)
            context.caches[name] = torch.zeros(shape, dtype=dtype)
        return context.caches[name]

    def _cached(self, name: str, length: int, context: Context) -> Tensor:
        spec = self.plan.caches[name]
        step = spec.dim.step
        shown = max(-(-length // step) * step, spec.dim.min)
        return context.caches[name].narrow(spec.axis, 0, shown)

    def _bind(self, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(self.plan.cuts)
        if len(args) > len(names):
            raise self._error(f"takes {counted(len(names), 'input')}, got {len(args)}")
        bound = dict(zip(names, args, strict=False))
        for name in bound.keys() & kwargs.keys():
            raise self._error(f"input {name!r} was given twice")
        bound |= kwargs
        for name in bound.keys() - set(names):
            raise self._error(f"has no input {name!r}{nearest(name, names)}")
        missing = [name for name in names if name not in bound]
        if missing:
            raise self._error(f"needs {', '.join(map(repr, missing))}")
        return bound

    def _length(self, inputs: dict[str, Tensor]) -> int:
        """How many rows the inputs have along the axis that they are cut along."""
        lengths = {}
        for name, cut in self.plan.cuts.items():
            tensor, wanted = inputs[name], list(cut.value.shape or ())
            if not isinstance(tensor, Tensor):
                raise self._error(f"input {name!r} must be a tensor, got {type(tensor).__name__}")
            if tensor.dim() != len(wanted):
                raise self._error(
                    f"input {name!r} must have {len(wanted)} axes, got {list(tensor.shape)}"
                )
            wanted[cut.axis] = tensor.shape[cut.axis]
            dtype = str(tensor.dtype).removeprefix("torch.")
            if list(tensor.shape) != wanted or dtype != cut.value.dtype:
                wanted[cut.axis] = "any length"
                raise self._error(
                    f"input {name!r} must be {cut.value.dtype}[{', '.join(map(str, wanted))}], "
                    f"got {dtype}{list(tensor.shape)}"
                )
            lengths[name] = tensor.shape[cut.axis]
        if len(set(lengths.values())) != 1:
            raise self._error(f"its inputs must be equally long, got {lengths}")
        (length,) = set(lengths.values())
        if length == 0:
            raise self._error("its input is empty")
        return length

    def _last_calls(self) -> dict[str, int]:
        """For each buffer that steps keep rows in, the last call that reached it."""
        last = self._methods.last_call
        return {buffer: max(map(last, users)) for buffer, users in self.plan.state.items()}

    def _require_own(self, context: Context) -> None:
        """A context that was fed by other flows must have exactly the caches and the state of this
        one: rows would be missing in what only one of them fills. The state must hold its rows."""
        self._require_own_state(context)
        has, wanted = set(context.caches), set(self.plan.caches)
        if context.position and has != wanted:
            raise self._error(
                f"this context was fed with caches {', '.join(sorted(has)) or 'none'}, "
                f"expected {', '.join(sorted(wanted)) or 'none'}"
            )
        for name in has & wanted:
            cache, (shape, dtype) = context.caches[name], _memory(self.plan.caches[name])
            if list(cache.shape) != shape or cache.dtype is not dtype:
                raise self._error(
                    f"cache {name!r} of this context is {list(cache.shape)} {cache.dtype}, as "
                    f"another flow made it, and must be {shape} {dtype} here"
                )

    def _require_own_state(self, context: Context) -> None:
        if not context.position:
            return
        if context.state.keys() != self.plan.state.keys():
            raise self._error(
                f"this context was fed with state {_listed(context.state)}, expected "
                f"{_listed(self.plan.state)}"
            )
        now = self._last_calls()
        for buffer, call in context.state.items():
            if now[buffer] != call:
                since = (
                    "the program was reset"
                    if now[buffer] == 0
                    else "another run, or a call of a method, wrote to it"
                )
                raise self._error(
                    "the rows of this context are no longer in the program's state: "
                    f"{since} since (buffer {buffer!r}). A program holds the state of one context "
                    "at a time: feed all rows again with a fresh Context, or load the program once "
                    "for each"
                )

    def _require_room(self, context: Context, length: int) -> None:
        limit = self.plan.limit
        if limit is not None and context.position + length > limit:
            raise self._error(
                f"{context.position} rows so far and {length} more do not fit: its steps with "
                f"state take positions 0 to {limit - 1}"
            )
        for name, spec in self.plan.caches.items():
            if context.position + length > spec.dim.max:
                raise self._error(
                    f"{context.position} rows so far and {length} more do not fit into cache "
                    f"{name!r} ({spec.dim})"
                )

    def _error(self, message: str) -> FlowError:
        return FlowError(f"flow {self.plan.name!r}: {message}")


def _memory(spec: CacheSpec) -> tuple[list[int], torch.dtype]:
    """Shape and dtype of a cache's memory."""
    sizes = enumerate(spec.value.shape or ())
    shape = [spec.dim.max if axis == spec.axis else int(size) for axis, size in sizes]
    dtype: torch.dtype = getattr(torch, spec.value.dtype)
    return shape, dtype


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "none"


def _piece(whole: Tensor, cut: Cut, start: int, rows: int) -> Tensor:
    piece = whole.narrow(cut.axis, start, rows)
    if rows == cut.size:
        return piece
    shape = list(piece.shape)
    shape[cut.axis] = cut.size
    padded = piece.new_zeros(shape)
    padded.narrow(cut.axis, 0, rows).copy_(piece)
    return padded
