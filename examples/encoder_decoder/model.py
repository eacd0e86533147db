"""A model with two entries, `encode` and `decode`, that use the same mixing layers."""

import torch
from torch import Tensor, nn


class EncoderDecoder(nn.Module):
    """Encodes a sequence to one vector, and decodes rows in the light of it."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        wide = 4 * width
        self.mix = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.out = nn.Linear(width, width)

    def encode(self, source: Tensor) -> Tensor:
        """[S, 256] -> [1, 256]."""
        return self.mix(source).mean(dim=0, keepdim=True)

    def decode(self, memory: Tensor, rows: Tensor) -> Tensor:
        """[1, 256], [T, 256] -> [T, 256]."""
        return self.out(self.mix(rows + memory))

    def forward(self, source: Tensor, rows: Tensor) -> Tensor:
        """[S, 256], [T, 256] -> [T, 256]."""
        return self.decode(self.encode(source), rows)


def encoder_decoder(seed: int = 0) -> nn.Module:
    """The model with random weights, the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EncoderDecoder()
