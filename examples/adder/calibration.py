"""Example inputs of the decoder, for precisions that take the ranges of values from some."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from mmpack.examples.adder import sums

PROMPTS = 8
WORKED_EXAMPLES = 6


def prompts() -> Iterator[dict[str, Tensor]]:
    """Worked sums as the model was trained on, none of them held out: tokens [1, about 70]."""
    rng = random.Random(7)
    for _ in range(PROMPTS):
        text = "".join(sums.line(*sums.draw(rng)) for _ in range(WORKED_EXAMPLES))
        yield {"tokens": torch.tensor([sums.encode(text)])}
