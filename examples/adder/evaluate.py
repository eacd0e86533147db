"""How often the decoder's answer is exactly right, on sums it was never trained on.

    accuracy(model, n=1000, seed=0, worked_examples=6)  # 1.0 is perfect
    complete(model, "12+7=19\\n123+989=")  # "1112\\n"

Both use the plain model, which reads the whole text at every call.
"""

from __future__ import annotations

import random

import torch
from torch import nn

from mmpack.examples.adder import sums


@torch.no_grad()
def complete(model: nn.Module, prompt: str, length: int = len("1998\n")) -> str:
    """What the model writes after the prompt, greedily: a line, or at most `length` bytes."""
    tokens = sums.encode(prompt)
    start = len(tokens)
    while len(tokens) < start + length and tokens[-1] != ord("\n"):
        logits = model(torch.tensor([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
    return sums.decode(tokens[start:])


@torch.no_grad()
def right(model: nn.Module, texts: list[str]) -> int:
    """How many texts, each a prompt and its right answer, the model would have ended so itself.

    Greedy decoding writes the right answer if and only if each byte of it is the likeliest one
    after the bytes before it, so one reading of the finished text tells.
    """
    rows = [torch.tensor(sums.encode(text)) for text in texts]
    # Padding on the right changes nothing that is looked at, for attention is causal.
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    likeliest = model(tokens).argmax(-1)
    count = 0
    for text, row, guess in zip(texts, rows, likeliest, strict=True):
        start = text.rindex("=") + 1
        count += torch.equal(guess[start - 1 : len(row) - 1], row[start:])
    return count


def accuracy(
    model: nn.Module, n: int = 1000, seed: int = 0, worked_examples: int = 0, batch: int = 50
) -> float:
    """The share of `n` held-out sums whose answer is right to the byte, newline included."""
    rng = random.Random(seed)
    texts = [
        "".join(sums.line(*sums.draw(rng)) for _ in range(worked_examples)) + sums.line(*question)
        for question in sums.held_out(n, seed)
    ]
    return sum(right(model, texts[i : i + batch]) for i in range(0, n, batch)) / n
