"""The trained adder: right answers, and the split program writes what eager PyTorch writes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from mmpack.examples.adder import sums
from mmpack.examples.adder.demo import SPEC, generate, generate_eagerly
from mmpack.examples.adder.evaluate import accuracy
from mmpack.multimethod import Context, Program, build, check, load
from mmpack.multimethod.compile.model import load_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_model(check(SPEC))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    path = tmp_path_factory.mktemp("adder") / "adder.pte"
    build(SPEC, path, jobs=2, cache=build_cache)
    return path


@pytest.fixture(scope="module")
def program(path: Path) -> Program:
    return load(path)


def _prompt(worked_examples: int, question: sums.Pair) -> torch.Tensor:
    rng = random.Random(worked_examples)
    worked = [sums.draw(rng) for _ in range(worked_examples)]
    return torch.tensor([sums.encode(sums.prompt(worked, question))])


def test_weights_fit_into_two_megabytes() -> None:
    assert SPEC.with_name("adder.safetensors").stat().st_size <= 2_000_000


@pytest.mark.parametrize("worked_examples", [0, 6])
def test_answers_99_of_100_held_out_sums_exactly(model: nn.Module, worked_examples: int) -> None:
    assert accuracy(model, n=1000, seed=0, worked_examples=worked_examples) >= 0.99


def test_no_held_out_sum_is_ever_drawn_for_training() -> None:
    rng = random.Random(3)
    assert not any(sums.is_held_out(*sums.draw(rng)) for _ in range(20_000))
    assert all(sums.is_held_out(*pair) for pair in sums.held_out(1000, 0))


@pytest.mark.parametrize(
    ("worked_examples", "question"),
    [(0, (123, 989)), (8, (123, 989)), (3, (7, 8)), (14, (999, 1)), (9, (500, 499))],
)
def test_program_writes_what_eager_pytorch_writes(
    program: Program, model: nn.Module, worked_examples: int, question: sums.Pair
) -> None:
    prompt = _prompt(worked_examples, question)
    tokens, logits = generate(program, prompt)
    expected_tokens, expected_logits = generate_eagerly(model, prompt)
    assert sums.decode(tokens) == f"{sum(question)}\n"
    assert tokens == expected_tokens
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100, 256])
def test_prefill_of_any_length_gives_the_models_logits(
    program: Program, model: nn.Module, length: int
) -> None:
    tokens = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        expected = model(tokens)
    got = program.flow("prefill").run(tokens, context=Context()).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_held_out_sums_through_the_program(program: Program) -> None:
    right = 0
    for question in sums.held_out(40, seed=5):
        tokens, _ = generate(program, _prompt(0, question))
        right += sums.decode(tokens) == f"{sum(question)}\n"
    assert right >= 39


def test_weights_stand_in_the_file_once(path: Path, model: nn.Module) -> None:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    methods = len(load(path).method_names) - len(load(path).constants)
    assert methods == 24
    assert path.stat().st_size <= 1.01 * weights + methods * 64 * 1024
