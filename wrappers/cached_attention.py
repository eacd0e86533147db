"""Attention that keeps keys and values itself, in a cache of fixed size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._cache import Cache, Visit
from mmpack.wrappers.attention import Attention


class CachedAttention(nn.Module):
    """A layer's attention without its projections: new rows go to the layer's caches (`_cache.py`),
    and queries see what is there up to their own position, as far back as their window reaches.

    The caches are state, `….self_attn.key_cache` and `….self_attn.value_cache`; methods of one
    layer share them, so the spec says `state: {shared: ["*.key_cache", "*.value_cache"]}`.

    rows: how many positions there is room for.
    head_dim: channels of a head, where the layer's attention does not say so itself.
    rotation, masked_softmax, kernel: as of `attention`. With `custom_sdpa` a call takes time for
    the rows up to its last position; without it, for all rows.
    """

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
        self.attention = Attention(layer, rotation, masked_softmax, kernel)
        self.rotation = rotation
        self.cache = Cache(layer, rows, head_dim, rotation)
        self.rows = rows

    def forward(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """q [1, S, heads, head_dim], k and v [1, S, kv_heads, head_dim], positions [S] int64, each
        less than `rows`; of rows at one position the first counts -> [1, S, heads * head_dim]."""
        return self.attend(q, k, v, Visit(positions, self.rows))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visit: Visit) -> Tensor:
        """`forward`, with what layers have in common."""
        keys, values = self.cache.write(k, v, visit)
        kernel = self.attention.kernel
        if kernel is None or kernel.needs_no_mask(q.shape[1]):
            whole: Tensor = self.attention(q, keys, values, visit.positions)
            return whole
        seen, mask = visit.length, visit.mask(kernel.window)
        mixed: Tensor = kernel(q, keys[:, :seen], values[:, :seen], visit.positions, mask)
        return mixed
