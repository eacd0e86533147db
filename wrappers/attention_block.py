"""The attention half of a decoder layer as one method with static shapes, for an NPU: norm,
projections, rotary embedding, attention over a cache and the new rows, output projection, and the
residual addition.

The caller owns the cache: one tensor of keys and one of values a layer, all heads together. A
call is given the cache and gives back the new rows alone; the caller copies them into the cache
and shows them to later calls through the mask (`cache_mask` makes it):

    k, v = torch.zeros(2, 1, kv_heads, past, head_dim)
    for start in range(0, length, new):
        visible = cache_mask(positions)                # positions = start … start + new - 1
        hidden, new_k, new_v = block(hidden, cos, sin, visible, k, v)
        k[:, :, start : start + new], v[:, :, start : start + new] = new_k, new_v
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpack.multimethod.errors import ModelError
from mmpack.wrappers._layer import attention_of, head_dim_of, is_sandwiched
from mmpack.wrappers._pointwise import Pointwise, to_image
from mmpack.wrappers._rotation import Rotation
from mmpack.wrappers._scores import Scores
from mmpack.wrappers._softmax import visible_softmax
from mmpack.wrappers.rotary import rotate


class AttentionBlock(nn.Module):
    """A layer's norms and `self_attn.{q,k,v,o}_proj`, and the attention between. Heads are counted
    from the projections' sizes. How far back a query sees is the mask's business.

    It is written in the way that ExecuTorch's conversion to single heads (`mha2sha` of a QNN
    target) converts rightly: 1×1 convolutions whose output goes straight into the view that makes
    the heads; heads of keys and values repeated by `expand`; scale, mask, softmax and the product
    with the values in this order; then at once `transpose` and `reshape`.

    rotation: `r3` turns query and key by one orthogonal matrix after the rotary embedding, so that
    keys quantize well (see `_rotation.py`). The cache then holds turned keys: all methods of a
    layer must say the same, or the build is refused. masked_softmax: see `_softmax.py`.
    """

    def __init__(
        self,
        layer: Any,
        head_dim: int | None = None,
        rotation: str | None = None,
        masked_softmax: bool = False,
    ) -> None:
        super().__init__()
        attention = attention_of(layer)
        if not hasattr(attention, "q_proj"):
            raise ModelError(
                f"{type(attention).__name__} has its projections packed in one; attention_block "
                "wants them apart, as q_proj, k_proj and v_proj"
            )
        self.norm = layer.input_layernorm
        self.mixed_norm = layer.post_attention_layernorm if is_sandwiched(layer) else nn.Identity()
        self.q_proj = Pointwise(attention.q_proj)
        self.k_proj = Pointwise(attention.k_proj)
        self.v_proj = Pointwise(attention.v_proj)
        self.o_proj = Pointwise(attention.o_proj)
        self.q_norm = getattr(attention, "q_norm", nn.Identity())
        self.k_norm = getattr(attention, "k_norm", nn.Identity())
        self.scores = Scores(attention)
        self.head_dim = head_dim_of(attention, head_dim)
        self.heads = self.q_proj.outputs // self.head_dim
        self.kv_heads = self.k_proj.outputs // self.head_dim
        self.rotation = rotation
        self.turn = Rotation(rotation, self.head_dim)
        self.masked_softmax = masked_softmax

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor,
        past_k: Tensor,
        past_v: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [B, S, hidden]; cos and sin [S, head_dim]; visible bool [S, T + S], whether a new
        row sees a row of the cache or a new one; past_k and past_v [B, kv_heads, T, head_dim]
        -> hidden [B, S, hidden], and the new rows' k and v [B, kv_heads, S, head_dim]."""
        batch, new, _ = hidden.shape
        image = to_image(self.norm(hidden))
        q = self.q_proj(image).view(batch, new, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(image).view(batch, new, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(image).view(batch, new, self.kv_heads, self.head_dim).transpose(1, 2)
        # All of rank 4: the conversion would split an axis of a smaller tensor that happens to be
        # as long as there are heads. By `view`, which it knows to leave alone.
        cos, sin, visible = (x.view(1, 1, *x.shape) for x in (cos, sin, visible))
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.turn(rotate(q, cos, sin)), self.turn(rotate(k, cos, sin))
        keys = self._for_all_heads(torch.cat([past_k, k], dim=2))
        values = self._for_all_heads(torch.cat([past_v, v], dim=2))
        weights = visible_softmax(self.scores(q, keys), visible, self.masked_softmax)
        mixed = (weights @ values).transpose(1, 2).reshape(batch, new, -1)
        return hidden + self.mixed_norm(self.o_proj(to_image(mixed)).squeeze(-1)), k, v

    def _for_all_heads(self, x: Tensor) -> Tensor:
        """[B, kv_heads, T, head_dim] -> [B, heads, T, head_dim]."""
        batch, kv_heads, length, head_dim = x.shape
        group = (batch, kv_heads, self.heads // kv_heads, length, head_dim)
        return x[:, :, None].expand(group).flatten(1, 2)
