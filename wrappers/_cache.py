"""A layer's keys and values as buffers of a fixed size, which its methods write and read.

Row j holds position j. A query sees no row behind its own position, and a text is written from
position 0 on, so whatever a row held before is overwritten before anybody sees it: two texts need
no reset between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpack.multimethod.errors import ModelError
from mmpack.wrappers._layer import attention_of, head_dim_of, kv_heads_of


class Visit:
    """What follows from the positions of a call alone, and so is made once for all its layers.

    positions: [S] int64, each less than `rows`, those of the caches.
    """

    def __init__(self, positions: Tensor, rows: int) -> None:
        self.positions = positions
        self.rows = rows
        self.source = _first_of_equals(positions) if len(positions) > 1 else None
        self._length: Any = None
        self._masks: dict[int | None, Tensor] = {}

    @property
    def length(self) -> Any:
        """How many rows are seen by any query."""
        if self._length is None:
            self._length = (self.positions.amax() + 1).item()
            check: Any = torch._check  # which torch.export learns the bounds from
            check(self._length >= 1)
            check(self._length <= self.rows)
        return self._length

    def mask(self, window: int | None) -> Tensor:
        """`visible` of these positions and the rows that are seen."""
        from mmpack.wrappers._visible import visible

        if window not in self._masks:
            self._masks[window] = visible(self.positions, self.length, window)
        return self._masks[window]


class Cache(nn.Module):
    """The buffers `key_cache` and `value_cache` [1, rows, kv_heads, head_dim] of a layer's
    `self_attn`, made for the first method of the layer that wants them and shared by the others:
    so their names in the model are `….self_attn.key_cache` and `….self_attn.value_cache`.

    Raises ModelError if they were made with other sizes, or for keys that are turned otherwise.
    """

    key_cache: Tensor
    value_cache: Tensor

    def __init__(self, layer: Any, rows: int, head_dim: int | None, rotation: str | None) -> None:
        super().__init__()
        if not isinstance(rows, int) or rows < 1:
            raise ModelError(f"rows must be a positive number, not {rows!r}")
        attention = attention_of(layer)
        head_dim = head_dim_of(attention, head_dim)
        shape = (1, rows, kv_heads_of(attention, head_dim), head_dim)
        said = f"rows {rows}, head_dim {head_dim} and rotation {rotation or 'none'}"
        before = attention.__dict__.setdefault("cache_made_with", said)
        if said != before:
            raise ModelError(
                f"the caches of this layer were made with {before}, and this has {said}; all "
                "methods of a layer share its caches, so give them the same"
            )
        for name in ("key_cache", "value_cache"):
            if not hasattr(attention, name):
                # Weights in half precision are computed with in float32 (`compile/widen.py`).
                dtype = torch.promote_types(attention.o_proj.weight.dtype, torch.float32)
                empty = torch.zeros(shape, dtype=dtype)
                attention.register_buffer(name, empty, persistent=False)
            self.register_buffer(name, getattr(attention, name), persistent=False)

    def write(self, k: Tensor, v: Tensor, visit: Visit) -> tuple[Tensor, Tensor]:
        """New rows [1, S, kv_heads, head_dim] at their positions -> both caches, in their dtype. Of
        rows at one position the first is written: a flow repeats the last for those that pad."""
        if visit.source is not None:
            k, v = k[:, visit.source], v[:, visit.source]
        self.key_cache.index_copy_(1, visit.positions, k.to(self.key_cache.dtype))
        self.value_cache.index_copy_(1, visit.positions, v.to(self.value_cache.dtype))
        return self.key_cache.to(k.dtype), self.value_cache.to(v.dtype)


def _first_of_equals(positions: Tensor) -> Tensor:
    """For each row the first that has its position [S], so that no two rows write different things
    to one place."""
    new = len(positions)
    return torch.where(positions[:, None] == positions, torch.arange(new), new).amin(dim=1)
