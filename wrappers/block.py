"""A decoder layer as one method that keeps its keys and values itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._cache import Visit
from mmpack.wrappers.cached_attention import CachedAttention
from mmpack.wrappers.output_mlp import OutputMlp
from mmpack.wrappers.qkv_proj import QkvProj


class Block(nn.Module):
    """`qkv_proj`, `cached_attention` and `output_mlp` of a layer, one after the other, with the
    arguments that these take."""

    def __init__(
        self,
        layer: Any,
        rows: int,
        kernel: str | None = None,
        head_dim: int | None = None,
        rotation: str | None = None,
        masked_softmax: bool = False,
    ) -> None:
        super().__init__()
        self.rotation = rotation
        self.rows = rows
        self.qkv_proj = QkvProj(layer, head_dim, rotation)
        self.attention = CachedAttention(layer, rows, kernel, head_dim, rotation, masked_softmax)
        self.output_mlp = OutputMlp(layer)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
        """[1, S, hidden], [S, rotary] twice, [S] int64, each less than `rows` -> [1, S, hidden]."""
        return self.run(hidden, cos, sin, Visit(positions, self.rows))

    def run(self, hidden: Tensor, cos: Tensor, sin: Tensor, visit: Visit) -> Tensor:
        """`forward`, with what layers have in common."""
        q, k, v = self.qkv_proj(hidden, cos, sin)
        mixed = self.attention.attend(q, k, v, visit)
        output: Tensor = self.output_mlp(hidden, mixed)
        return output
