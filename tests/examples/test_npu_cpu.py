"""A block of the adder, its projections on the NPU and its attention on the CPU: the adder still
adds, with that block run by the program, chunk by chunk, in the simulator."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mmpack.examples.adder import sums
from mmpack.examples.npu_cpu.answer import adder_with
from mmpack.multimethod import Program, inspect, load

from ..targets.qnn import needs_qnn

pytestmark = needs_qnn


@pytest.fixture(scope="module")
def program(example: Callable[[str], Path]) -> Program:
    return load(example("npu_cpu"))


def texts(count: int) -> list[str]:
    """Held-out sums with their answers, after some worked ones."""
    rng = random.Random(0)
    worked = [sums.line(*sums.draw(rng)) for _ in range(6)]
    return ["".join(worked) + sums.line(*pair) for pair in sums.held_out(count, 0)]


@torch.no_grad()
def likeliest(model: nn.Module, text: str) -> list[int]:
    """The likeliest byte after each one of a text."""
    guesses: list[int] = model(torch.tensor([sums.encode(text)])).argmax(-1)[0].tolist()
    return guesses


def test_each_part_is_where_it_belongs(program: Program) -> None:
    methods = inspect(program.path).methods
    assert methods["qkv_proj"].delegates == methods["output_mlp"].delegates == {"QnnBackend": 1}
    assert not methods["qkv_proj"].left and not methods["output_mlp"].left
    assert set(methods["attention"].delegates) == {"XnnpackBackend"}
    dims = program.signature("attention").dims.values()
    assert [dim.name for dim in dims if not dim.fixed] == ["kv"]


def test_a_handful_of_sums_has_the_tokens_of_eager_pytorch(program: Program) -> None:
    ours, eager = adder_with(program), adder_with(None)
    for text in texts(5):
        assert len(text) > 2 * 32  # several chunks, the last one padded
        guesses, start = likeliest(ours, text), text.rindex("=")
        assert guesses[start:] == likeliest(eager, text)[start:]
        assert guesses[start:-1] == sums.encode(text)[start + 1 :]


@pytest.mark.slow
def test_the_adder_still_adds(program: Program) -> None:
    ours, eager = adder_with(program), adder_with(None)
    right = same = 0
    for text in texts(300):
        start = text.rindex("=")
        answer = likeliest(ours, text)[start:]
        right += answer[:-1] == sums.encode(text)[start + 1 :]
        same += answer == likeliest(eager, text)[start:]
    assert right >= 0.97 * 300
    assert same == 300  # float16 changes no token


def test_it_answers_on_the_command_line(program: Program) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmpack.examples.npu_cpu.answer", str(program.path), "123+989"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("\n123+989=1112\n")
    assert "qnn" not in done.stdout.lower() + done.stderr.lower()
