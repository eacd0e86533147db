"""What inputs that a method has accepted looked like: the next such need no examination.

A look is all that a signature says of tensors, and all that the runtime trusts. The native engine
has the same in its extension (`native/looks.cpp`), where it takes a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from attrs import frozen
from torch import Tensor

REMEMBERED = 4096
"""Calls remembered per method, so that growing caches do not grow this too."""

_LOOKS = attrgetter("__class__", "dtype", "is_cpu", "layout", "shape")
"""All that a signature says of a tensor, and all that the runtime trusts but for `_plain`."""


@frozen
class Looks:
    """known: whether inputs, of any types, look exactly like some that were remembered, with memory
    that holds their elements as they are, in their order. remember: those of a call whose inputs
    are all plain tensors; only so many are."""

    known: Callable[[Sequence[Any]], bool]
    remember: Callable[[Sequence[Any]], None]


def looks(most: int = REMEMBERED) -> Looks:
    """Nothing is known yet. most: how many calls are remembered, the first ones."""
    seen: set[tuple[Any, ...]] = set()

    def known(inputs: Sequence[Any]) -> bool:
        try:
            return tuple(map(_LOOKS, inputs)) in seen and _plain(inputs)
        except (AttributeError, RuntimeError, TypeError):
            return False  # not a tensor, or one without a shape

    def remember(inputs: Sequence[Any]) -> None:
        if len(seen) < most:
            seen.add(tuple(map(_LOOKS, inputs)))

    return Looks(known, remember)


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether the memory of all of them holds their elements as they are, in their order."""
    return all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_neg, tensors))
