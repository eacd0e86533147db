"""How often the decoder's answer is exactly right, on sums it was never trained on.

    accuracy(model, n=1000, seed=0, worked_examples=6)  # 1.0 is perfect

The answers come from the plain model, which reads the whole text again for every byte.
"""

from __future__ import annotations

import random

import torch
from torch import nn

from mmpack.examples.adder import sums

ANSWER_BYTES = len("1998\n")


@torch.no_grad()
def complete(model: nn.Module, prompts: list[str], length: int = ANSWER_BYTES) -> list[str]:
    """The next `length` bytes after each prompt, greedily, cut after the first newline."""
    rows = [sums.encode(text) for text in prompts]
    ends = torch.tensor([len(row) for row in rows])
    index = torch.arange(len(rows))
    # Padding on the right changes nothing: attention is causal, and each row reads its own end.
    tokens = torch.zeros(len(rows), int(ends.max()) + length, dtype=torch.int64)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    for _ in range(length):
        logits = model(tokens[:, : int(ends.max())])
        tokens[index, ends] = logits[index, ends - 1].argmax(-1)
        ends += 1
    starts = ends - length
    texts = [
        sums.decode(row[start:end].tolist())
        for row, start, end in zip(tokens, starts, ends, strict=True)
    ]
    return ["".join(text.partition("\n")[:2]) for text in texts]


def accuracy(
    model: nn.Module, n: int = 1000, seed: int = 0, worked_examples: int = 0, batch: int = 50
) -> float:
    """The share of `n` held-out sums whose answer is right to the byte, newline included."""
    rng = random.Random(seed)
    questions = sums.held_out(n, seed)
    right = 0
    for start in range(0, n, batch):
        part = questions[start : start + batch]
        prompts = [
            sums.prompt((sums.draw(rng) for _ in range(worked_examples)), question)
            for question in part
        ]
        answers = complete(model, prompts)
        right += sum(answer == f"{a + b}\n" for answer, (a, b) in zip(answers, part, strict=True))
    return right / n
