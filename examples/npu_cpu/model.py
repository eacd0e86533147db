"""The adder, with one of its blocks to be called alone: what the flow `block` must equal."""

import torch
from torch import Tensor, nn

from mmpack.examples.adder.model import Adder, AdderConfig, rotary

BLOCK = 1
"""Which of the four it is; the spec's `layers.1`."""


class AdderInBlocks(Adder):
    """The adder, and one block of it."""

    def block(self, hidden: Tensor) -> Tensor:
        """[B, S, hidden] -> [B, S, hidden], for a sequence from its beginning."""
        positions = torch.arange(hidden.shape[1])
        out: Tensor = self.layers[BLOCK](hidden, *rotary(positions, self.config.head_dim))
        return out


def adder() -> nn.Module:
    """The decoder in eval mode, for the adder's weights."""
    return AdderInBlocks(AdderConfig()).eval()
