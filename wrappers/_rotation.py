"""R3: query and key turned by one orthogonal Hadamard matrix, so that outliers in a few channels
are spread over all of them and the key cache quantizes well. Their products stay the same.

Source: Liu et al., "SpinQuant: LLM Quantization with Learned Rotations" (2024), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpack.multimethod.errors import ModelError, nearest

ROTATIONS = ("r3",)


class Rotation(nn.Module):
    """Turns the last axis of a tensor by the normalized Hadamard matrix of that size; kind None
    turns nothing.

    Raises ModelError for an unknown kind, and for a head_dim that is no power of two: only for
    those is there the matrix.
    """

    matrix: Tensor

    def __init__(self, kind: str | None, head_dim: int) -> None:
        super().__init__()
        check_rotation(kind)
        self.kind = kind
        if kind is not None:
            # Of rank 4, lest a conversion to single heads split it where head_dim is their number.
            self.register_buffer("matrix", hadamard(head_dim)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., head_dim] -> [..., head_dim]."""
        return x if self.kind is None else x @ self.matrix


def check_rotation(kind: str | None) -> None:
    """Raise ModelError unless there is such a rotation."""
    if kind is not None and kind not in ROTATIONS:
        raise ModelError(f"no rotation is called {kind!r}{nearest(str(kind), ROTATIONS)}")


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix over the square root of its size, its columns in reverse order:
    [size, size], orthogonal.

    Reversed, since ExecuTorch's QNN quantizer puts HadamardTransform in the place of a product
    with Sylvester's own, and what QNN 2.49 computes for that in a tensor of several heads is wrong.
    """
    if size < 1 or size & (size - 1):
        below = 1 << max(size.bit_length() - 1, 0)
        raise ModelError(
            f"rotation r3 needs a head_dim that is a power of two, not {size} (the nearest are "
            f"{below} and {2 * below})"
        )
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    turned: Tensor = matrix.flip(1) * size**-0.5
    return turned
