"""Which keys a query sees, as what is added to scores."""

from __future__ import annotations

import torch
from torch import Tensor

FAR = 1e30
"""What is added to a score, times the distance, where a key is not to be seen. Not infinity: a
mask of differences takes two operators, which XNNPACK delegates, where comparing takes four that
nothing does; and a row that sees no key at all is no NaN."""


def visible(positions: Tensor, length: int, window: int | None) -> Tensor:
    """What to add to scores [S, T]: 0 for keys up to the query's position, as far back as the
    window reaches, and less than -1e29 for all others. positions [S] int64."""
    query = (positions.to(torch.float32) * FAR)[:, None]
    key = torch.arange(length, dtype=torch.float32)
    mask = (query - key * FAR).clamp(max=0.0)
    if window is not None:
        last = (key + (window - 1)) * FAR  # of the queries that see a key
        mask = mask + (last - query).clamp(max=0.0)
    return mask
