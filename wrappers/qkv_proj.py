"""The front of a decoder layer: norm, query, key and value projections, rotary embedding."""

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._layer import attention_of, head_dim_of, kv_heads_of
from mmpack.wrappers._rotation import Rotation
from mmpack.wrappers.rotary import rotate


class QkvProj(nn.Module):
    """A layer's `input_layernorm` and `self_attn.{q,k,v}_proj`, or the packed `qkv_proj`; and norms
    of query and key, where a layer has them. Heads are counted from the projections' sizes.

    head_dim: channels of a head, where the layer's attention does not say so itself.
    rotation: `r3` turns query and key, after the rotary embedding, by one orthogonal matrix, so
    that keys quantize well (see `_rotation.py`); a cache holds them turned. `attention` must be
    told the same.
    """

    def __init__(
        self, layer: Any, head_dim: int | None = None, rotation: str | None = None
    ) -> None:
        super().__init__()
        attention = attention_of(layer)
        self.norm = layer.input_layernorm
        self.head_dim = head_dim_of(attention, head_dim)
        packed = getattr(attention, "qkv_proj", None)
        names = ("qkv_proj",) if packed is not None else ("q_proj", "k_proj", "v_proj")
        self.projections = nn.ModuleList(getattr(attention, name) for name in names)
        self.q_norm = getattr(attention, "q_norm", nn.Identity())
        self.k_norm = getattr(attention, "k_norm", nn.Identity())
        self.heads = attention.o_proj.in_features // self.head_dim
        self.kv_heads = kv_heads_of(attention, self.head_dim)
        self.rotation = rotation
        self.turn = Rotation(rotation, self.head_dim)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, hidden], [S, rotary] twice -> q [B, S, heads, head_dim], and k and v
        [B, S, kv_heads, head_dim]."""
        x = self.norm(hidden)
        heads = [p(x).unflatten(-1, (-1, self.head_dim)) for p in self.projections]
        if len(heads) == 1:
            heads = list(heads[0].split([self.heads, self.kv_heads, self.kv_heads], dim=2))
        q, k, v = heads
        q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = cos[:, None], sin[:, None]
        return self.turn(rotate(q, cos, sin)), self.turn(rotate(k, cos, sin)), v
