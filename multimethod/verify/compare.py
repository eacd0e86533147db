"""What a method is tried with, and how far two answers are apart."""

from __future__ import annotations

import itertools
import math
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


HUGE = 1e4
"""Values of this magnitude and above do not count towards an output's scale: a mask of -1e9 beside
the numbers that matter would hide any error in these. They are held to their own magnitude."""
SMALLEST_SCALE = 1e-3
"""The scale of an output is at least this, so that noise around zero is not an error."""


def difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The largest error of any element, relative to the output's scale (the root mean square of
    its elements) or to the element's own magnitude where that is larger.

    Infinite if shape or dtype differ, if integers or bools differ at all, if one side has a NaN or
    an infinity where the other has none, or if there is nothing finite to compare.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.dtype.is_floating_point:
        return 0.0 if torch.equal(expected, got) else float("inf")
    e, g = expected.reshape(-1).double(), got.reshape(-1).double()
    size, apart = e.abs(), (e - g).abs_()
    largest = float(size.max())
    if math.isfinite(largest) and math.isfinite(float(apart.max())):
        return _largest(e, size, apart, largest)
    odd = ~torch.isfinite(expected)
    same = torch.equal(odd, ~torch.isfinite(got)) and torch.equal(
        torch.nan_to_num(expected[odd]), torch.nan_to_num(got[odd])
    )
    if not same or bool(odd.all()):
        return float("inf")
    e, g = expected[~odd].double(), got[~odd].double()
    size = e.abs()
    return _largest(e, size, (e - g).abs_(), float(size.max()))


def _largest(e: torch.Tensor, size: torch.Tensor, apart: torch.Tensor, largest: float) -> float:
    """The largest relative error. e: what is expected, all finite; size: its magnitude, of which
    `largest` is the largest; apart: how far it is from what was got."""
    usual = e if largest < HUGE else e[size < HUGE]
    scale = max(float(usual.square().mean().sqrt()), SMALLEST_SCALE) if usual.numel() else HUGE
    return float(apart.div_(size.clamp_(min=scale)).max())


def chosen(tensor: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """`tensor[which]`; where that is all, a view, which takes a tenth of the time."""
    return tensor.reshape(-1) if bool(which.all()) else tensor[which]
