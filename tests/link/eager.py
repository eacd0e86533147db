"""Linked programs held against eager PyTorch, call after call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .conftest import Stock
from .programs import Cache

ORDER = ("put", "bump", "peek", "bump", "put", "peek", "bump", "bump", "peek")


def sharing(models: dict[str, Cache], *names: str) -> dict[str, Cache]:
    """The modules, with the named buffers of the first in all."""
    first, *rest = models.values()
    for module in rest:
        for name in names:
            module._buffers[name] = first._buffers[name]
    return models


def equal_to_eager(
    program: Stock, models: Mapping[str, nn.Module], order: Sequence[str] = ORDER
) -> None:
    """Calls the methods in turn, with another input each time."""
    for step, method in enumerate(order):
        x = torch.tensor([1.0 + step])
        with torch.no_grad():
            expected = models[method](x)
        (got,) = program.run(method, [x])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5, msg=f"step {step}, {method}")
