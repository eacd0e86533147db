"""Calls run by the native engine on its own threads (`graph.cpp`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmpack.multimethod.runtime.graph import Call, CallsFailed, Ran, Rows


class NativeGraph:
    """See `runtime.graph.Graph`. names: the methods that calls are of. methods: those of the
    extension, by name; which they are is looked up in every run, since one may have been loaded
    anew."""

    def __init__(
        self,
        extension: Any,
        names: Sequence[str],
        methods: Mapping[str, Any],
        calls: Sequence[Call],
    ) -> None:
        self._failed = extension.CallFailed
        self._names = names
        self._methods = methods
        numbers: dict[str | None, int | None] = {name: n for n, name in enumerate(names)}
        numbers[None] = None
        self._graph = extension.Graph([_plain(call, numbers[call.method]) for call in calls])

    def run(
        self,
        tensors: Sequence[Tensor],
        ranks: Sequence[int],
        *,
        waits: bool,
        workers: Sequence[int],
        delays: Sequence[int] = (),
    ) -> list[Ran]:
        try:
            ran: list[Ran] = self._graph.run(
                methods=[self._methods[name] for name in self._names],
                tensors=tensors,
                ranks=ranks,
                waits=waits,
                workers=workers,
                delays=delays,
            )
            return ran
        except self._failed as error:
            number, text = error.args
            raise CallsFailed(number, RuntimeError(text)) from None


def _plain(call: Call, method: int | None) -> tuple[Any, ...]:
    return (
        method,
        call.lane,
        call.before,
        [_rows(i) if isinstance(i, Rows) else (i.call, i.output) for i in call.inputs],
        [(output, _rows(rows)) for output, rows in call.copies],
    )


def _rows(rows: Rows) -> tuple[int, int, int, int]:
    return rows.tensor, rows.axis, rows.start, rows.length
