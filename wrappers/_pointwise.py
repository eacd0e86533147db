"""A linear layer as a convolution of 1×1: what an NPU calls a fully connected layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Module):
    """An `nn.Linear` in the shape of a convolution, on images of height 1 (see `to_image`). Its
    weight is a view of the linear's, in the same memory."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight[:, :, None, None], requires_grad=False)
        self.bias = linear.bias
        self.outputs = len(linear.weight)

    def forward(self, image: Tensor) -> Tensor:
        """[B, inputs, 1, S] -> [B, S, outputs, 1], to be viewed as [B, S, heads, head_dim]."""
        return F.conv2d(image, self.weight, self.bias).permute(0, 3, 1, 2)


def to_image(x: Tensor) -> Tensor:
    """[B, S, channels] -> [B, channels, 1, S]."""
    batch, rows, channels = x.shape
    return x.reshape(batch, rows, 1, channels).transpose(1, 3)
