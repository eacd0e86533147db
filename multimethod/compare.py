"""What a method is tried with, and how far two answers are apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from mmpack.multimethod.signature import Dim

MOST_COMBINATIONS = 27
"""Three sizes of three dims. With more dims, all are at their minimum, middle and maximum
together, and each in turn at its ends while the rest are in the middle."""


def combinations(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """The sizes to try: every dim at its minimum, a middle and its maximum."""
    samples = {name: dim.samples() for name, dim in dims.items()}
    products = itertools.product(*samples.values())
    every = [dict(zip(samples, sizes, strict=True)) for sizes in products]
    if len(every) <= MOST_COMBINATIONS:
        return every + [sizes for sizes in _equal(dims) if sizes not in every]
    middle = {name: s[len(s) // 2] for name, s in samples.items()}
    chosen = [{name: s[i * (len(s) - 1) // 2] for name, s in samples.items()} for i in range(3)]
    chosen += [{**middle, name: end} for name, s in samples.items() for end in (s[0], s[-1])]
    return chosen + _equal(dims)


def _equal(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Two dims of one size, for each two that can be: export may have taken them for different."""
    moving = [dim for dim in dims.values() if not dim.fixed]
    pairs = []
    for one, other in itertools.combinations(moving, 2):
        both = range(max(one.min, other.min), min(one.max, other.max) + 1)
        same = [size for size in both if one.admits(size) and other.admits(size)]
        if same:
            middle = {dim.name: dim.samples()[len(dim.samples()) // 2] for dim in dims.values()}
            pairs.append({**middle, one.name: same[-1], other.name: same[-1]})
    return pairs


def difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The largest absolute error, divided by the largest magnitude expected where that is above 1.

    Infinite if shape or dtype differ, if integers or bools differ at all, or if one side has a
    NaN or an infinity where the other has none.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.dtype.is_floating_point:
        return 0.0 if torch.equal(expected, got) else float("inf")
    e, g = expected.double(), got.double()
    odd = ~torch.isfinite(e)
    if not torch.equal(odd, ~torch.isfinite(g)) or not torch.equal(
        torch.nan_to_num(e[odd]), torch.nan_to_num(g[odd])
    ):
        return float("inf")
    e, g = e[~odd], g[~odd]
    if not e.numel():
        return 0.0
    return float((e - g).abs().max() / max(1.0, float(e.abs().max())))
