"""What a method is tried with, and how far two answers are apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

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
BLOCK = 1 << 17
"""Elements that are compared at a time."""


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
    squares, usual, finite = 0.0, 0, 0
    for e, g in _blocks(expected, got):
        if e.numel() == 0:
            continue
        if not math.isfinite(float((e - g).abs_().max())):
            return float("inf")
        counted = e if float(e.abs().max()) < HUGE else e[e.abs() < HUGE]
        squares += float(counted.square().sum())
        usual += counted.numel()
        finite += e.numel()
    if not finite or not _same_oddities(expected, got):
        return float("inf")
    scale = max(math.sqrt(squares / usual), SMALLEST_SCALE) if usual else HUGE
    return max(
        float((e - g).abs_().div_(e.abs().clamp_(min=scale)).max())
        for e, g in _blocks(expected, got)
        if e.numel()
    )


def _blocks(
    expected: torch.Tensor, got: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The elements where finite ones are expected, in double precision, some at a time: what stays
    in the processor's cache is compared twice as fast."""
    pairs = zip(*(torch.split(t.reshape(-1), BLOCK) for t in (expected, got)), strict=True)
    for e, g in pairs:
        finite = torch.isfinite(e)
        yield chosen(e, finite).double(), chosen(g, finite).double()


def _same_oddities(expected: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether NaN and infinities are where they are expected; where finite numbers are expected,
    finite ones are known to be."""
    odd = ~torch.isfinite(expected)
    if not bool(odd.any()):
        return True
    e, g = expected[odd], got[odd]
    return not bool(torch.isfinite(g).any()) and torch.equal(
        torch.nan_to_num(e), torch.nan_to_num(g)
    )


def chosen(tensor: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """`tensor[which]`; where that is all, a view, which takes a tenth of the time."""
    return tensor.reshape(-1) if bool(which.all()) else tensor[which]
