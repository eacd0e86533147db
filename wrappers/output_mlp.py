"""The back of a decoder layer: output projection, norm, MLP, and both residual additions."""

from typing import Any

from torch import Tensor, nn


class OutputMlp(nn.Module):
    """A layer's `self_attn.o_proj`, `post_attention_layernorm` and `mlp`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.o_proj = layer.self_attn.o_proj
        self.norm = layer.post_attention_layernorm
        self.mlp = layer.mlp

    def forward(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The layer's input [B, S, hidden] and what attention made of it
        [B, S, heads * head_dim] -> the layer's output [B, S, hidden]."""
        hidden = hidden + self.o_proj(mixed)
        output: Tensor = hidden + self.mlp(self.norm(hidden))
        return output
