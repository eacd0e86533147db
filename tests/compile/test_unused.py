"""What a method does not touch is not in its program."""

from __future__ import annotations

import torch
from torch import nn

from mmpack.multimethod.compile.unused import drop_unused


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("cache", torch.zeros(1000))
        self.register_buffer("count", torch.zeros(1), persistent=False)
        self.register_buffer("last", torch.zeros(2, 4))
        self.register_buffer("spare", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        self.last.copy_(x)
        return self.used(x)


def test_unused_weights_and_buffers_are_dropped_and_the_rest_computes_the_same() -> None:
    model, x = Two(), torch.randn(2, 4)
    program = torch.export.export(model, (x,), strict=False).run_decompositions({})
    drop_unused(program)
    names = {spec.target for spec in program.graph_signature.input_specs if spec.target}
    # `count` is read nowhere but in its own change, `last` nowhere at all.
    assert names == {"used.weight", "used.bias", "count", "last"}
    assert set(program.state_dict) == {"used.weight", "used.bias", "last"}
    assert set(program.constants) == {"count"}
    torch.testing.assert_close(program.module()(x), model.used(x))
