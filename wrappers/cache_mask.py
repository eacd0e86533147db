"""Which rows of a cache, and which new rows, each new row sees."""

import torch
from torch import Tensor, nn


class CacheMask(nn.Module):
    """Positions to the mask that `attention_block` takes, for a cache whose row i holds position
    i. It has no weights, so one method serves all layers, and `module` is not used; any will do.

    past: rows of the cache. Those from the first new position on are not filled yet, and hidden.
    """

    def __init__(self, module: nn.Module, past: int) -> None:
        super().__init__()
        self.past = past

    def forward(self, positions: Tensor) -> Tensor:
        """[S] int64, consecutive -> bool [S, past + S], true for what is seen: the cache before
        the first of these positions, and the new rows up to the row's own."""
        filled = (torch.arange(self.past) < positions[0]).expand(len(positions), self.past)
        return torch.cat([filled, positions <= positions[:, None]], dim=1)
