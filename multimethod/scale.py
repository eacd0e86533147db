"""How a tensor is quantized, and whether two places do it alike. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from attrs import frozen

Place = TypeVar("Place")


@frozen
class Scale:
    """How a tensor is quantized: value = scale * (integer - zero_point), with integers from `low`
    to `high`, which `dtype` is the smallest to hold."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: str

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value that there is."""
        low, high = self.low - self.zero_point, self.high - self.zero_point
        return self.scale * low, self.scale * high

    def __str__(self) -> str:
        return f"{self.dtype} scale {self.scale:.6g} zero point {self.zero_point}"


End = tuple[str, str]
"""Of a method: ("input", name), ("output", name) or ("state", name of a buffer in the model)."""
EndScales = tuple[str, str, tuple[Scale, ...]]
"""An end, in two parts, and its scales: several where its readers quantize it differently."""


def agree(one: Scale, other: Scale) -> bool:
    """Whether two ends quantize alike: with the same numbers, or, where their integers have other
    widths, the same range of values to within a step of the coarser one."""
    if (one.low, one.high) == (other.low, other.high):
        same = math.isclose(one.scale, other.scale, rel_tol=1e-6)
        return same and one.zero_point == other.zero_point
    step = max(one.scale, other.scale) * 1.000001
    return all(abs(a - b) <= step for a, b in zip(one.range, other.range, strict=True))


def disagreement(
    scales: Sequence[tuple[Place, Scale]],
) -> tuple[tuple[Place, Scale], tuple[Place, Scale]] | None:
    """Of the places that one tensor passes, the first and one that does not agree with it."""
    return next(((scales[0], other) for other in scales if not agree(scales[0][1], other[1])), None)
