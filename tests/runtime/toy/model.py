"""A model with a method of every kind that a call can meet: fixed, dynamic, stepped, stateful."""

import torch
from torch import Tensor, nn


class Toy(nn.Module):
    """`total` starts at other values than zero and is shared; `calls` each method has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.tensor([7.0, -1.0]))
        self.register_buffer("calls", torch.zeros(1))

    def blend(self, x: Tensor, y: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
        """[2, 3], [2, 3], [4] int64 -> [2, 3], [2, 4]."""
        return x - 2 * y, x.index_select(1, picks)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """[M, 4], [4, N] -> [M, N]."""
        return a @ b

    def window(self, x: Tensor, y: Tensor) -> Tensor:
        """[W, 2], [W, 2] -> [W, 4]."""
        return torch.cat([x, -y], dim=1)

    def add(self, amount: Tensor) -> tuple[Tensor, Tensor]:
        """[2] -> the new total, and how many calls this method had."""
        self.calls.add_(1)
        self.total.add_(amount)
        return self.total.clone(), self.calls.clone()

    def scaled(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """[2] -> the total times factor, and how many calls this method had."""
        self.calls.add_(1)
        return self.total * factor, self.calls.clone()
