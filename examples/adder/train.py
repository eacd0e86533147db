"""Train the decoder to add and write its weights.

    python -m mmpack.examples.adder.train --output adder.safetensors  # 13 minutes on 2 cores

One seed gives one set of weights: data, initial weights and order are all drawn from it, and
the thread count, which decides the order in which floats are summed, is fixed too.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import click
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpack.examples.adder import sums
from mmpack.examples.adder.evaluate import accuracy
from mmpack.examples.adder.model import adder

IGNORE = -100
# Short sequences are cheap and teach the sum; long ones teach that it does not matter where in
# the context the sum stands.
LENGTHS = (32, 64, 64, 64, 128, 256)
TOKENS_PER_STEP = 4096


def sequence(rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    """Packed lines and, at each place, the byte to predict: two lists of `length`.

    Only answers and their newlines are to be predicted; the questions are random.
    """
    tokens: list[int] = []
    targets: list[int] = []
    while len(tokens) <= length:
        a, b = sums.draw(rng)
        question = sums.encode(sums.prompt((), (a, b)))
        answer = sums.encode(f"{a + b}\n")
        tokens += question + answer
        targets += [IGNORE] * len(question) + answer
    return tokens[:length], targets[1 : length + 1]


def batch(rng: random.Random) -> tuple[Tensor, Tensor]:
    """Tokens and targets of one step: [B, S], [B, S] int64 with B * S = TOKENS_PER_STEP."""
    length = rng.choice(LENGTHS)
    rows = [sequence(rng, length) for _ in range(TOKENS_PER_STEP // length)]
    tokens, targets = zip(*rows, strict=True)
    return torch.tensor(tokens), torch.tensor(targets)


def initialise(model: nn.Module) -> None:
    """Draw all matrices from a narrow normal distribution, and leave norms at one."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.05)


def optimizer(model: nn.Module, lr: float, decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def schedule(step: int, steps: int) -> float:
    """The share of the full learning rate: a linear rise, then half a cosine down to zero."""
    warmup = steps // 20
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(seed: int, steps: int, lr: float, decay: float) -> nn.Module:
    """A trained decoder, in eval mode."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    rng = random.Random(seed)
    model = adder()
    initialise(model)
    descent = optimizer(model, lr, decay)
    rate = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: schedule(step, steps))
    model.train()
    started = time.monotonic()
    for step in range(1, steps + 1):
        tokens, targets = batch(rng)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        descent.step()
        rate.step()
        if step % 250 == 0:
            seconds = time.monotonic() - started
            click.echo(f"step {step}  loss {loss.item():.4f}  {seconds:.0f} s")
    return model.eval()


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("adder.safetensors"))
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=4000, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--decay", default=0.05, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(output: Path, seed: int, steps: int, lr: float, decay: float, threads: int) -> None:
    torch.set_num_threads(threads)
    model = train(seed, steps, lr, decay)
    metadata = {"seed": str(seed), "steps": str(steps), "torch": torch.__version__}
    partial = output.with_name(output.name + ".partial")
    safetensors.torch.save_file(model.state_dict(), partial, metadata=metadata)
    partial.replace(output)
    for worked_examples in (0, 6):
        share = accuracy(model, worked_examples=worked_examples)
        click.echo(f"{share:.1%} of 1000 held-out sums after {worked_examples} worked examples")


if __name__ == "__main__":
    main()
