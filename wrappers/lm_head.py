"""The end of a decoder: last norm, and the projection to the vocabulary."""

from typing import Any

from torch import Tensor, nn

from mmpack.wrappers._softcap import softcap


class LmHead(nn.Module):
    """A model's `lm_head` and `norm` (its own, or that of its `model`, as Hugging Face nests them),
    and the cap on its logits, where its configuration has one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm = model.norm if hasattr(model, "norm") else model.model.norm
        self.lm_head = model.lm_head
        config = getattr(model, "config", None)
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, hidden] -> logits [B, S, vocabulary]."""
        return softcap(self.lm_head(self.norm(hidden)), self.cap)
