"""The front of a decoder layer: norm, query, key and value projections, rotary embedding."""

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._rotation import Rotation
from mmpack.wrappers.rotary import rotate


class QkvProj(nn.Module):
    """A layer's `input_layernorm` and `self_attn.{q,k,v}_proj`. Heads are counted from the
    projections' sizes.

    rotation: `r3` turns query and key, after the rotary embedding, by one orthogonal matrix, so
    that keys quantize well (see `_rotation.py`); a cache holds them turned. `attention` must be
    told the same.
    """

    def __init__(self, layer: Any, head_dim: int, rotation: str | None = None) -> None:
        super().__init__()
        self.norm = layer.input_layernorm
        self.q_proj = layer.self_attn.q_proj
        self.k_proj = layer.self_attn.k_proj
        self.v_proj = layer.self_attn.v_proj
        self.head_dim = head_dim
        self.rotation = rotation
        self.turn = Rotation(rotation, head_dim)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, hidden], [S, head_dim] twice -> q [B, S, heads, head_dim], and k and v
        [B, S, kv_heads, head_dim]."""
        x = self.norm(hidden)
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = cos[:, None], sin[:, None]
        return self.turn(rotate(q, cos, sin)), self.turn(rotate(k, cos, sin)), v
