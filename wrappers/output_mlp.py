"""The back of a decoder layer: output projection, norms, MLP, and both residual additions."""

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._layer import attention_of, is_sandwiched


class OutputMlp(nn.Module):
    """A layer's `self_attn.o_proj`, norms and `mlp`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.o_proj = attention_of(layer).o_proj
        self.mlp = layer.mlp
        behind = layer.post_attention_layernorm
        if is_sandwiched(layer):
            self.mixed_norm, self.norm = behind, layer.pre_feedforward_layernorm
            self.mlp_norm = layer.post_feedforward_layernorm
        else:
            self.mixed_norm, self.norm, self.mlp_norm = nn.Identity(), behind, nn.Identity()

    def forward(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The layer's input [B, S, hidden] and what attention made of it
        [B, S, heads * head_dim] -> the layer's output [B, S, hidden]."""
        hidden = hidden + self.mixed_norm(self.o_proj(mixed))
        output: Tensor = hidden + self.mlp_norm(self.mlp(self.norm(hidden)))
        return output
