"""Softmax over the keys that a query may see."""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = -1e4
"""What a hidden score becomes: e to that power is 0 in float32, and float16 can hold it."""
MARGIN = 24.0
"""How far below its row's minimum `masked` puts a hidden score. Up to 26,000 hidden keys then
take less than 1e-6 of a row's probability from the others."""


def visible_softmax(scores: Tensor, visible: Tensor, masked: bool) -> Tensor:
    """Probabilities [..., S, T] of scores [..., S, T], those where `visible` (bool, broadcast) is
    false hidden.

    masked: put hidden scores just below their row's minimum, rather than at a huge negative
    number that the quantized range of the scores would have to reach to.
    """
    low = scores.amin(dim=-1, keepdim=True) - MARGIN if masked else torch.tensor(HIDDEN)
    return torch.where(visible, scores, low).softmax(dim=-1)
