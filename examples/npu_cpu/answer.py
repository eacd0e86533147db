"""The adder answers a sum, one of its blocks run by a program, chunk by chunk.

mmpack build npu_cpu.yaml -o npu_cpu.pte
python -m mmpack.examples.npu_cpu.answer npu_cpu.pte 123+989
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpack.examples.adder import sums
from mmpack.examples.adder.evaluate import complete
from mmpack.examples.npu_cpu.model import BLOCK
from mmpack.multimethod.check import check
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.flow.program import Program, load

SPEC = Path(__file__).with_name("npu_cpu.yaml")


class Block(nn.Module):
    """A layer of the adder that a program's flow `block` runs."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.flow = program.flow("block")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, hidden], and angles that the flow makes itself -> [B, S, hidden]."""
        return torch.cat([self.flow.run(row[None]).hidden for row in x])


def adder_with(program: Program | None) -> nn.Module:
    """The adder in eager PyTorch, but for the block that the program has, if there is one."""
    model = load_model(check(SPEC))
    if program is not None:
        layers = model.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        layers[BLOCK] = Block(program)
    return model


def main() -> None:
    path, question = sys.argv[1:]
    a, b = map(int, question.split("+"))
    rng = random.Random(0)
    prompt = sums.prompt([sums.draw(rng) for _ in range(8)], (a, b))
    print(prompt + complete(adder_with(load(path)), prompt).strip())


if __name__ == "__main__":
    main()
