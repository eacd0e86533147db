"""What a worker is told to import for a program's operators."""

from __future__ import annotations

import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401, it registers an operator
import torch
from torch import Tensor, nn

from mmpack.multimethod.compile.objects import _registering


class Plain(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q + k + v


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended: Tensor = torch.ops.llama.custom_sdpa(q, k, v, 0, None, 0.0, True)
        return attended


class Branches(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chosen: Tensor = torch.cond(q.sum() > 0, Attention(), Plain(), (q, k, v))
        return chosen


def modules(module: nn.Module) -> tuple[str, ...]:
    inputs = tuple(torch.randn(1, 4, 2, 8) for _ in range(3))
    return _registering(torch.export.export(module, inputs), module).modules


def test_a_plain_program_wants_nothing() -> None:
    assert modules(Plain()) == ()


def test_an_operator_is_found_wherever_it_is() -> None:
    """Also in a branch of torch.cond, which has a graph of its own."""
    for module in (Attention(), Branches()):
        assert "executorch.extension.llm.custom_ops.custom_ops" in modules(module)
