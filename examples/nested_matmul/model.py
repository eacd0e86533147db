"""A module that projects, with a nested `MatMul` that wants shapes of its own."""

import torch
from torch import Tensor, nn


class MatMul(nn.Module):
    """A matrix product, without weights."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[M, 64], [64, N] -> [M, N]."""
        return torch.matmul(a, b)


class Projected(nn.Module):
    """Projects both of its inputs and multiplies the results."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width)
        self.matmul = MatMul()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[B, 64], [B, 64] -> [B, B]."""
        return self.matmul(self.left(x), self.right(y).transpose(0, 1))


def projected(seed: int = 0) -> nn.Module:
    """The model with random weights, the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Projected()
