"""Rotary embedding: angles once per piece of tokens, for all layers, and their application.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), in the
rotate-half form that Hugging Face's models use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpack.multimethod.errors import ModelError


class Rotary(nn.Module):
    """Positions to the cosines and sines that `qkv_proj` turns query and key by.

    module: a decoder's own rotary embedding (`rotary_emb`), whose frequencies and scaling are
    taken; or any other module, if `head_dim` and `theta` are given. layer_type: whose frequencies,
    of a decoder that has several (`sliding_attention` of Gemma 3).

    Some families change their frequencies for texts beyond a length; these are those for shorter
    ones.
    """

    frequencies: Tensor

    def __init__(
        self,
        module: Any,
        head_dim: int | None = None,
        theta: float = 10000.0,
        layer_type: str | None = None,
    ) -> None:
        super().__init__()
        kind = "" if layer_type is None else f"{layer_type}_"
        if head_dim is not None:
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
            frequencies, self.scaling = theta**-exponents, 1.0
        elif hasattr(module, f"{kind}inv_freq"):
            frequencies = getattr(module, f"{kind}inv_freq").float()
            self.scaling = float(getattr(module, f"{kind}attention_scaling", 1.0))
        else:
            raise ModelError(_no_frequencies(module, layer_type))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[S] int64 -> [S, rotary], [S, rotary]: the channels of a head that are turned."""
        angles = positions.to(torch.float32)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.scaling, angles.sin() * self.scaling


def layer_type_of(module: Any, layer: Any) -> str | None:
    """Which frequencies of a decoder's `rotary_emb` a layer takes; None if there is one kind."""
    if hasattr(module, "inv_freq"):
        return None
    kind: str | None = getattr(getattr(layer, "self_attn", None), "layer_type", None)
    return kind


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the last axis of x, or its first channels if there are fewer angles, by angles whose
    cosines and sines are cos and sin, broadcast to x: [S, 1, rotary] for x
    [B, S, heads, head_dim]."""
    channels = cos.shape[-1]
    half = channels // 2
    if channels < x.shape[-1]:
        return torch.cat([rotate(x[..., :channels], cos, sin), x[..., channels:]], dim=-1)
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def _no_frequencies(module: nn.Module, layer_type: str | None) -> str:
    kinds = [
        name.removesuffix("_inv_freq")
        for name, _ in module.named_buffers(recurse=False)
        if name.endswith("_inv_freq") and not name.endswith("original_inv_freq")
    ]
    if kinds:
        return (
            f"{type(module).__name__} has frequencies for {', '.join(sorted(kinds))}; `layer_type` "
            f"must be one of them, not {layer_type!r}"
        )
    return f"{type(module).__name__} is no rotary embedding; give `head_dim`, or its `rotary_emb`"
