"""A whole decoder as one method that keeps its keys and values itself."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from mmpack.wrappers._cache import Visit
from mmpack.wrappers.block import Block
from mmpack.wrappers.embedding import Embedding
from mmpack.wrappers.lm_head import LmHead
from mmpack.wrappers.rotary import Rotary, layer_type_of


class Prefill(nn.Module):
    """`embedding`, `rotary` once for each kind of layers, a `block` for each layer, and `lm_head`,
    with the arguments that these take; of a model, or of its `model`, as Hugging Face nests them.

    head_dim, theta: where the decoder has no `rotary_emb` that says them.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        kernel: str | None = None,
        head_dim: int | None = None,
        theta: float = 10000.0,
        rotation: str | None = None,
        masked_softmax: bool = False,
    ) -> None:
        super().__init__()
        decoder = model.model if hasattr(model, "model") else model
        self.rotation = rotation
        self.rows = rows
        self.embedding = Embedding(decoder.embed_tokens)
        angles = getattr(decoder, "rotary_emb", None)
        types = [None if angles is None else layer_type_of(angles, y) for y in decoder.layers]
        kinds = list(dict.fromkeys(types))
        self.kinds = [kinds.index(kind) for kind in types]
        self.rotary = nn.ModuleList(
            Rotary(decoder, head_dim, theta) if angles is None else Rotary(angles, layer_type=kind)
            for kind in kinds
        )
        self.blocks = nn.ModuleList(
            Block(layer, rows, kernel, head_dim, rotation, masked_softmax)
            for layer in decoder.layers
        )
        self.lm_head = LmHead(model)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [1, S] int64, positions [S] int64, each less than `rows`; of tokens at one
        position the first counts -> logits [1, S, vocabulary]."""
        visit = Visit(positions, self.rows)
        angles = [rotary(positions) for rotary in self.rotary]
        hidden = self.embedding(tokens)
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            cos, sin = angles[kind]
            hidden = cast(Block, block).run(hidden, cos, sin, visit)
        logits: Tensor = self.lm_head(hidden)
        return logits
