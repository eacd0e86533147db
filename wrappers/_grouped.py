"""Attention as two products of matrices for each head of keys, whatever the number of query heads
that share it: their rows go below each other. So keys are never copied for each of them, and
XNNPACK, which computes all of it, has larger matrices to multiply.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpack.wrappers._scores import Scores
from mmpack.wrappers._softcap import softcap
from mmpack.wrappers._visible import visible


class Grouped(nn.Module):
    """Attention with scores as `scores` scales and caps them, as far back as the window reaches."""

    def __init__(self, scores: Scores, window: int | None) -> None:
        super().__init__()
        self.scaling, self.cap = scores.scaling, scores.cap
        self.window = window

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """q [B, S, heads, head_dim], k and v [B, T, kv_heads, head_dim], positions [S] int64
        -> [B, S, heads * head_dim]. mask: that of `visible`, if there is one already."""
        batch, new, heads, head_dim = q.shape
        length, kv_heads = k.shape[1], k.shape[2]
        groups, rows = batch * kv_heads, heads // kv_heads * new
        if mask is None:
            mask = visible(positions, length, self.window)
        scale = head_dim**-0.5 if self.scaling is None else self.scaling
        q = (q * scale).transpose(1, 2).reshape(groups, rows, head_dim)
        k = k.permute(0, 2, 3, 1).reshape(groups, head_dim, length)
        v = v.transpose(1, 2).reshape(groups, length, head_dim)
        scores = softcap(torch.bmm(q, k), self.cap).reshape(batch * heads, new, length)
        weights = (scores + mask).softmax(-1).reshape(groups, rows, length)
        mixed = torch.bmm(weights, v).reshape(batch, heads, new, head_dim)
        return mixed.transpose(1, 2).reshape(batch, new, heads * head_dim)

    def needs_no_mask(self, new: int) -> bool:
        """As of `CustomSdpa`."""
        return False
