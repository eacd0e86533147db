"""What lowering a method takes, in memory and time: guessed from the bytes of its weights, and from
what it took for others, in this build and in those that filled the cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn

from mmpack.multimethod.compile.widen import kept_in_half

BASE = 600_000_000
"""Bytes that a worker has resident at most with a method that has hardly any weights. Measured: 420
to 440 MB for `xnnpack` and `portable`, 590 MB for `qnn`."""
FACTOR = 3.0
"""Bytes more for each byte of weights in float32. Measured with weights of 100 to 400 MB: 1.1 for
linear layers as 8da4w, 1.9 in float32, 2.7 for `qnn`, 2.9 for embedding tables as 8w."""
MARGIN = 1.05
"""What a method may take more than one like it did."""


@frozen
class Cost:
    """What lowering a method took.

    kind: the target with its options. weights: bytes, as float32. seconds: None if it is not known,
    as is memory: bytes resident at most in its worker.
    """

    kind: str
    weights: int
    seconds: float | None = None
    memory: int | None = None


def kind(backend: str, options: Mapping[str, Any]) -> str:
    """What methods have in common that are lowered alike."""
    return json.dumps([backend, dict(options)], sort_keys=True, default=str)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights and buffers of a module, as float32 where they are computed with so; one
    that it has twice, once."""
    return _bytes([*module.parameters(), *module.buffers()]) + _bytes(kept_in_half(module))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Costs:
    """Estimates, which what is learned makes better. `earlier`: method -> what it took before."""

    def __init__(self, earlier: Mapping[str, Cost]) -> None:
        self._earlier = earlier
        self._most: dict[tuple[str, int], int] = {}
        self._above: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = {}
        self._compared: list[tuple[float, float]] = []
        for cost in earlier.values():
            self._learn_memory(cost)

    def learn(self, method: str, cost: Cost) -> None:
        """What it took for one of the methods, in this build."""
        self._learn_memory(cost)
        if cost.seconds is not None:
            self._seconds.setdefault(cost.kind, []).append(cost.seconds)
            before = self._earlier.get(method)
            if before is not None and before.seconds is not None:
                self._compared.append((cost.seconds, before.seconds))

    def memory(self, kind: str, weights: int) -> int:
        """Bytes that a worker will have resident at most: what it was for methods of the same kind
        and size; or else a guess, and no more than it was for one of that kind which is larger."""
        most = self._most.get((kind, weights))
        if most is not None:
            return int(most * MARGIN)
        guess = _guess(weights) * max(1.0, self._above.get(kind, 1.0))
        larger = (m for (k, w), m in self._most.items() if k == kind and w > weights)
        return int(min([guess, *(m * MARGIN for m in larger)]))

    def seconds(self, method: str, kind: str) -> float | None:
        """What lowering a method will take: as long as before, corrected by how this build compares
        with those before; or as methods of its kind took in this build, or any. None without any.
        """
        before = self._earlier.get(method)
        if before is not None and before.seconds is not None:
            here = sum(now for now, _ in self._compared)
            there = sum(then for _, then in self._compared)
            return before.seconds * (here / there if there > 0 else 1.0)
        known = self._seconds.get(kind) or [s for took in self._seconds.values() for s in took]
        known = known or [c.seconds for c in self._earlier.values() if c.seconds is not None]
        return sum(known) / len(known) if known else None

    def _learn_memory(self, cost: Cost) -> None:
        if cost.memory:
            key = (cost.kind, cost.weights)
            self._most[key] = max(cost.memory, self._most.get(key, 0))
            above = cost.memory / _guess(cost.weights)
            self._above[cost.kind] = max(above, self._above.get(cost.kind, 0.0))


def _guess(weights: int) -> float:
    return BASE + FACTOR * weights
