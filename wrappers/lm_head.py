"""The end of a decoder: last norm, and the projection to the vocabulary."""

from typing import Any

from torch import Tensor, nn


class LmHead(nn.Module):
    """A model's `norm` and `lm_head`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm = model.norm
        self.lm_head = model.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, hidden] -> logits [B, S, vocabulary]."""
        logits: Tensor = self.lm_head(self.norm(hidden))
        return logits
