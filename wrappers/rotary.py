"""Rotary embedding: angles once per piece of tokens, for all layers, and their application.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), in the
rotate-half form that Hugging Face's Llama uses.
"""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Positions to the cosines and sines that `qkv_proj` turns query and key by.

    It has no weights, so `module` is not used; any will do.
    """

    frequencies: Tensor

    def __init__(self, module: nn.Module, head_dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("frequencies", theta**-exponents, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[S] int64 -> [S, head_dim], [S, head_dim]."""
        angles = positions.to(torch.float32)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the last axis of x by angles whose cosines and sines are cos and sin, broadcast to x:
    [S, 1, head_dim] for x [B, S, heads, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin
