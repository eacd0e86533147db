"""Which buffers a module changes and which it computes with, seen while it runs in eager PyTorch.

torch.export tells the same of an exported program; this is for before there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operator that is called in its block: `with watch: result = module(x)`.

    Each memory is known by the buffers that its content was computed from, so that a buffer which
    is looked at and then not used counts as little as it does in torch.export.
    """

    supports_higher_order_operators = True

    def __init__(self, buffers: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # A weak reference keeps the address of a memory that is gone from being used again.
        self._from: dict[StorageWeakRef, frozenset[str]] = {}
        self._changed: set[StorageWeakRef] = set()
        self._own: dict[StorageWeakRef, frozenset[str]] = {}
        for name, tensor in buffers.items():
            for key in _memories([tensor]):
                self._own[key] = self._own.get(key, frozenset()) | {name}
        self._from.update(self._own)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = _memories(pytree.tree_leaves((args, kwargs)))
        sources = frozenset[str]().union(*(self._from.get(key, ()) for key in taken))
        for key in _memories(_written(func, args, kwargs)):
            self._changed.add(key)
            self._from[key] = self._from.get(key, frozenset()) | sources
        for key in _memories(pytree.tree_leaves(result)):
            if key not in taken:  # otherwise it is a view
                self._from[key] = sources
        return result

    def changed(self) -> frozenset[str]:
        """Buffers that were written to."""
        return frozenset[str]().union(*(self._own.get(key, ()) for key in self._changed))

    def wrote(self, tensor: torch.Tensor) -> bool:
        """Whether something was written to a tensor, or to a part of it."""
        return any(key in self._changed for key in _memories([tensor]))

    def used(self, results: Iterable[Any]) -> frozenset[str]:
        """Buffers that the results, or what was written to buffers, were computed from."""
        ends = [*_memories(results), *(self._changed & self._own.keys())]
        return frozenset[str]().union(*(self._from.get(key, ()) for key in ends))


def _memories(values: Iterable[Any]) -> list[StorageWeakRef]:
    return [
        StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]
        for value in values
        if isinstance(value, torch.Tensor) and torch._C._has_storage(value)
    ]


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operator changes, by its schema."""
    if not isinstance(func, torch._ops.OpOverload):
        return []  # an operator that takes functions, such as torch.cond: these change nothing
    written: list[Any] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[number] if number < len(args) else None)
            written += pytree.tree_leaves(value)
    return written
