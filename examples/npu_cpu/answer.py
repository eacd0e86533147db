"""The adder answers a sum, one of its blocks run by a program, chunk by chunk.

mmpack build npu_cpu.yaml -o npu_cpu.pte
python -m mmpack.examples.npu_cpu.answer npu_cpu.pte 123+989
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from mmpack.examples.adder import sums
from mmpack.examples.adder.demo import parse
from mmpack.examples.adder.evaluate import complete
from mmpack.examples.npu_cpu.model import BLOCK
from mmpack.multimethod import MmpackError, Program, check, load
from mmpack.multimethod.compile.model import load_model

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


def answer(path: Path, question: str) -> str:
    """Worked examples, then the question, such as "123+989", and what the adder answers.

    Raises CallError for a question that is no sum, FlowError for a program without the block.
    """
    pair = parse(question)
    rng = random.Random(0)
    prompt = sums.prompt([sums.draw(rng) for _ in range(8)], pair)
    return prompt + complete(adder_with(load(path)), prompt).strip()


@click.command()
@click.argument("program", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("question", metavar="SUM")
def main(program: Path, question: str) -> None:
    """Have the adder add SUM, such as 123+989, with one of its blocks run by PROGRAM."""
    try:
        click.echo(answer(program, question))
    except MmpackError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
