"""The memory of a flow's caches, and the pieces that its inputs are cut in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmpack.multimethod.flow.plan import CacheSpec, Cut, Plan
from mmpack.multimethod.flow.tasks import shown


def memory(spec: CacheSpec) -> tuple[list[int], torch.dtype]:
    """Shape and dtype of a cache's memory."""
    sizes = enumerate(spec.value.shape or ())
    shape = [spec.dim.max if axis == spec.axis else int(size) for axis, size in sizes]
    dtype: torch.dtype = getattr(torch, spec.value.dtype)
    return shape, dtype


def storage(caches: dict[str, Tensor], name: str, spec: CacheSpec) -> Tensor:
    """A cache's memory, allocated whole at its first use, so that growing copies nothing."""
    if name not in caches:
        shape, dtype = memory(spec)
        caches[name] = torch.zeros(shape, dtype=dtype)
    return caches[name]


def append(cache: Tensor, spec: CacheSpec, piece: Tensor, at: int, rows: int) -> None:
    """Write the first `rows` rows of a piece behind the first `at` of a cache."""
    cache.narrow(spec.axis, at, rows).copy_(piece.narrow(spec.axis, 0, rows))


def visible(cache: Tensor, spec: CacheSpec, length: int) -> Tensor:
    """What a reader gets of a cache with `length` rows."""
    return cache.narrow(spec.axis, 0, shown(spec, length))


def cut_piece(whole: Tensor, cut: Cut, start: int, rows: int) -> Tensor:
    """One piece of an input, padded with zeros to the size of all."""
    piece = whole.narrow(cut.axis, start, rows)
    if rows == cut.size:
        return piece
    shape = list(piece.shape)
    shape[cut.axis] = cut.size
    padded = piece.new_zeros(shape)
    padded.narrow(cut.axis, 0, rows).copy_(piece)
    return padded


def joined(plan: Plan, pieces: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """For each output of a flow its pieces in one; {} without any.

    A single one in full is given as it is, being its method's result and nobody else's. A copy
    would cost more than itself: torch makes large ones with threads of its own, which go on looking
    for work for a while and keep a CPU from ExecuTorch's in the next call.
    """
    return {
        name: parts[0]
        if len(parts) == 1 and parts[0].shape[axis] == plan.size
        else torch.cat(parts, dim=axis)
        for name, axis in plan.joins.items()
        if (parts := pieces[name])
    }


def positions(first: int, rows: int, size: int) -> Tensor:
    """The running index of each row of a piece. Padded rows repeat the position of the last real
    one, so that no table is indexed beyond what the caller asked for."""
    return first + torch.arange(size).clamp(max=rows - 1)
