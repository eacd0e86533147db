"""Test values for the inputs of a method: of the right shapes and dtypes, the same every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from mmpack.multimethod.signature import Dim, ValueSpec


def fill(shape: Iterable[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with every dim name replaced by its size."""
    return tuple(sizes[s] if isinstance(s, str) else s for s in shape)


def random_tensor(
    dtype: str,
    shape: tuple[int, ...],
    value_range: tuple[int, int] | None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Test values: standard normal for floats; for integers uniform in `value_range` (inclusive;
    none given: all that the dtype holds), for bools either."""
    wanted = getattr(torch, dtype)
    if wanted.is_floating_point:
        return torch.randn(shape, generator=generator).to(wanted)
    if wanted is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(wanted)
    holds = torch.iinfo(wanted)
    low, high = value_range or (holds.min, holds.max)
    return torch.randint(low, min(high, 2**63 - 2) + 1, shape, generator=generator).to(wanted)


def random_inputs(
    inputs: Iterable[ValueSpec],
    sizes: Mapping[str, int],
    ranges: Mapping[str, tuple[int, int]],
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Test values for the inputs of a method, its dims set to `sizes`."""
    return [
        random_tensor(v.dtype, fill(v.shape or (), sizes), ranges.get(v.name), generator)
        for v in inputs
    ]


LARGE = 4096
"""Examples are no larger than this: half of a generous maximum may not fit into memory."""


def middle_sizes(dims: Mapping[str, Dim]) -> dict[str, int]:
    """A size for each dim between its ends, no two alike where that can be had, so that export
    cannot mistake one dim for another."""
    sizes: dict[str, int] = {}
    for name, dim in dims.items():
        samples = dim.samples()
        size = samples[len(samples) // 2]
        if not dim.fixed:
            size = min(size, max(dim.min, LARGE // dim.step * dim.step))
        if not dim.fixed:
            while size in sizes.values() and dim.admits(size + dim.step):
                size += dim.step
        sizes[name] = size
    return sizes
