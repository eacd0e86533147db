"""Scores of queries and keys, as a family scales and caps them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._softcap import softcap


class Scores(nn.Module):
    """Products of queries and keys, scaled by the `scaling` of some attention and bounded by its
    `attn_logit_softcapping`; where it has none, by 1 / sqrt(head_dim), and not at all."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.scaling: float | None = getattr(attention, "scaling", None)
        self.cap: float | None = getattr(attention, "attn_logit_softcapping", None)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """[B, heads, S, head_dim], [B, heads, T, head_dim] -> [B, heads, S, T]."""
        scaling = q.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        return softcap(q @ k.transpose(-2, -1) * scaling, self.cap)


def window_of(attention: Any) -> int | None:
    """How many keys a query of some attention sees, its own the last of them; None for all. It
    says so itself, where layers differ, or its configuration does."""
    shared = getattr(getattr(attention, "config", None), "sliding_window", None)
    window: int | None = getattr(attention, "sliding_window", shared)
    return window
