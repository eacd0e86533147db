"""A graph of calls of one program's methods, which may be loaded anew between two runs of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmpack.multimethod.runtime.graph import Call, CallsFailed, Graph, Ran, Rows

if TYPE_CHECKING:
    from mmpack.multimethod.runtime.methods import Methods


class ProgramGraph:
    """Calls of a program's methods, whatever becomes of its engine and of the methods in it."""

    def __init__(self, methods: Methods, calls: Sequence[Call]) -> None:
        self._methods = methods
        self._calls = calls
        self._names = list(dict.fromkeys(c.method for c in calls if c.method is not None))
        self._graph = self._made()

    @property
    def possible(self) -> bool:
        return self._graph is not None

    def run(self, tensors: Sequence[Tensor], ranks: Sequence[int], **how: Any) -> list[Ran]:
        if self._methods._engine is not self._engine:
            self._graph = self._made()
        assert self._graph is not None
        for name in self._names:
            self._methods[name].begin()
        try:
            return self._graph.run(tensors, ranks, **how)
        except CallsFailed as failed:
            call = self._calls[failed.call]
            method = self._methods[call.method or ""]
            inputs = [
                tensors[i.tensor].narrow(i.axis, i.start, i.length) if isinstance(i, Rows) else None
                for i in call.inputs
            ]
            raise CallsFailed(failed.call, method.explain(failed.error, inputs)) from failed.error

    def _made(self) -> Graph | None:
        for name in self._names:
            self._methods[name].prepare()
        self._engine = self._methods._engine
        return self._engine.graph(self._calls)
