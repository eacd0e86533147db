"""Causal grouped-query attention between some new tokens and all keys so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpack.wrappers._kernel import kernel_of
from mmpack.wrappers._rotation import check_rotation
from mmpack.wrappers._scores import Scores, window_of
from mmpack.wrappers._softmax import visible_softmax


class Attention(nn.Module):
    """Attention without projections. It has no weights, so one method serves all layers that
    attend alike.

    module: a decoder layer, whose attention says how scores are scaled and capped and how far back
    a query sees (its sliding window); or any other module, for what Llama does.

    The mask follows from positions: key j belongs to position j, and a query sees the keys up to
    its own position, as far back as the window reaches. Keys beyond the last query's position may
    hold anything finite. What a query gets that sees no key, since its window ends behind the last
    one, is finite and means nothing.

    rotation: what `qkv_proj` has turned query and key by. Their products are the same, so nothing
    is done here; but all methods that reach one cache must say the same, or the build is refused.
    masked_softmax: put hidden scores just below their row's minimum, not at minus infinity; for
    attention whose scores are quantized.
    kernel: `custom_sdpa` for ExecuTorch's fused attention, which no backend takes: it runs on the
    CPU. Not where scores are capped. `grouped` for products of larger matrices, which XNNPACK takes
    whole: of some hundred keys, for a chunk of queries, in half the time of `custom_sdpa`.
    """

    def __init__(
        self,
        module: Any,
        rotation: str | None = None,
        masked_softmax: bool = False,
        kernel: str | None = None,
    ) -> None:
        super().__init__()
        check_rotation(rotation)
        self.rotation = rotation
        self.masked_softmax = masked_softmax
        attention = getattr(module, "self_attn", None)
        self.scores = Scores(attention)
        self.window = window_of(attention)
        self.kernel = kernel_of(kernel, self.scores, self.window, masked_softmax)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """q [B, S, heads, head_dim], k and v [B, T, kv_heads, head_dim], positions [S] int64
        -> [B, S, heads * head_dim]. Query heads share key heads in consecutive groups."""
        if self.kernel is not None:
            fused: Tensor = self.kernel(q, k, v, positions)
            return fused
        batch, new, heads, head_dim = q.shape
        length, kv_heads = k.shape[1], k.shape[2]
        group = (batch, kv_heads, heads // kv_heads, length, head_dim)
        k = k.transpose(1, 2)[:, :, None].expand(group).flatten(1, 2)
        v = v.transpose(1, 2)[:, :, None].expand(group).flatten(1, 2)
        scores = self.scores(q.transpose(1, 2), k)
        behind = positions[:, None] - torch.arange(length)
        hidden_keys, low = behind < 0, float("-inf")
        if self.window is not None:
            hidden_keys = hidden_keys | (behind >= self.window)
            low = torch.finfo(scores.dtype).min  # all keys of a row may be hidden: no NaN then
        if self.masked_softmax:
            weights = visible_softmax(scores, ~hidden_keys, masked=True)
        else:
            weights = scores.masked_fill(hidden_keys, low).softmax(dim=-1)
        mixed: Tensor = weights @ v
        return mixed.transpose(1, 2).reshape(batch, new, heads * head_dim)
