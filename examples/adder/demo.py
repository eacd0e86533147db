"""The demo: build the adder, feed it worked examples chunk by chunk, have it write a sum.

The same tokens go through plain eager PyTorch, and both must agree, token by token and logit by
logit.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpack.examples.adder import sums
from mmpack.multimethod import (
    CallError,
    Context,
    Program,
    VerifyError,
    build,
    check,
    generate,
    load,
)
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.report.display import Display
from mmpack.multimethod.report.tables import build_summary, build_table, terminal

SPEC = Path(__file__).with_name("adder.yaml")
WORKED_EXAMPLES = 8
LONGEST_ANSWER = 5
"""Bytes: four digits and the newline that ends them."""


def demo(question: str, output: Path, *, jobs: int = 1, cache: Path | None = None) -> None:
    """Build the program at `output` and show it at work on `question`, such as "123+989".

    Raises CallError for a question that is no sum of two numbers of up to 3 digits, VerifyError
    if the program and eager PyTorch do not agree.
    """
    pair = parse(question)
    console = terminal()
    with Display(console) as display:
        report = build(SPEC, output, jobs=jobs, cache=cache, progress=display)
    console.print(build_table(report))
    console.print(build_summary(report), highlight=False, markup=False)

    rng = random.Random(0)
    text = sums.prompt([sums.draw(rng) for _ in range(WORKED_EXAMPLES)], pair)
    prompt = torch.tensor([sums.encode(text)])
    program = load(output)
    pieces = -(-prompt.shape[1] // program.flow("prefill").plan.size)
    console.print(f"\n{prompt.shape[1]} tokens in {pieces} chunks:\n", highlight=False)

    tokens, logits = answer(program, prompt)
    expected_tokens, expected_logits = answer_eagerly(load_model(check(SPEC)), prompt)
    error = float((logits - expected_logits).abs().max())
    console.print(text + f"[bold]{sums.decode(tokens).strip()}[/bold]", highlight=False)
    console.print(
        f"\nprogram       {sums.decode(tokens)!r}\neager PyTorch {sums.decode(expected_tokens)!r}\n"
        f"max error of {logits.shape[0]} × {logits.shape[1]} logits: {error:.1e}",
        highlight=False,
        markup=False,
    )
    if tokens != expected_tokens or error > 1e-3:
        raise VerifyError("the program and eager PyTorch do not agree")


def answer(program: Program, prompt: Tensor) -> tuple[list[int], Tensor]:
    """The answer of the program to a prompt [1, S]: its tokens, its newline included, and the
    logits [S + answer - 1, 256] of every token that was fed."""
    written = list(generate(program, prompt, max_tokens=LONGEST_ANSWER, stop={ord("\n")}))
    context = Context()
    logits = program.flow("prefill").run(prompt, context=context).logits[0]
    for token in written[:-1]:
        step = program.flow("decode").run(torch.tensor([[token]]), context=context)
        logits = torch.cat([logits, step.logits[0]])
    return written, logits


@torch.no_grad()
def answer_eagerly(model: nn.Module, prompt: Tensor) -> tuple[list[int], Tensor]:
    """The same by the whole model in plain PyTorch, which reads everything anew for each token."""
    written: list[int] = []
    while True:
        logits = model(torch.cat([prompt, torch.tensor([written], dtype=torch.int64)], dim=1))[0]
        if len(written) == LONGEST_ANSWER or written[-1:] == [ord("\n")]:
            return written, logits[: prompt.shape[1] + len(written) - 1]
        written.append(int(logits[-1].argmax()))


def parse(question: str) -> sums.Pair:
    """The two numbers of `123+989`. Raises CallError for what is no such sum."""
    left, plus, right = question.strip().rstrip("=").partition("+")
    if (
        not (question.isascii() and plus and left.isdecimal() and right.isdecimal())
        or max(len(left), len(right)) > 3
    ):
        raise CallError(f"{question!r}: expected a sum of two numbers of up to 3 digits: 123+989")
    return int(left), int(right)
