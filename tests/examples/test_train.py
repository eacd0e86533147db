"""The adder's training: one seed, one set of weights; and what it is shown."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmpack.examples.adder import sums, train
from mmpack.examples.adder.train import IGNORE, LENGTHS, TOKENS_PER_STEP, batch


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """Training has torch use deterministic algorithms, which is for a process of its own."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


def trained(seed: int, steps: int = 2) -> dict[str, Tensor]:
    return train.train(seed, steps, lr=2e-3, decay=0.05).state_dict()


def test_one_seed_gives_one_set_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 256)
    shown: list[Tensor] = []

    def noted(rng: random.Random) -> tuple[Tensor, Tensor]:
        made = batch(rng)
        shown.append(made[0])
        return made

    monkeypatch.setattr(train, "batch", noted)
    one = trained(7)
    torch.rand(3), random.random()  # what came before does not count
    again, other, sooner = trained(7), trained(8), trained(7, steps=1)
    steps = [tuple(tokens.flatten().tolist()) for tokens in shown]  # 2 + 2 + 2 + 1
    assert steps[:2] == steps[2:4] and steps[6] == steps[0]
    assert not {*steps[:2]} & {*steps[4:6]} and steps[0] != steps[1]
    assert one.keys() == again.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)
    matrices = [name for name in one if one[name].dim() == 2]
    assert len(matrices) > 20
    for name in matrices:
        assert not torch.equal(one[name], other[name])
        assert not torch.equal(one[name], sooner[name])


LINE = r"(\d+)\+(\d+)=(\d+)\n"


def test_a_batch_is_sums_that_are_not_held_out_and_their_answers() -> None:
    """Told apart from the code: lines are found by their signs, and targets are the next byte of
    the text, from the equals sign to the newline."""
    rng = random.Random(3)
    held_out = set(sums.held_out(5000, 0))
    seen = 0
    for _ in range(6):
        tokens, targets = batch(rng)
        assert tokens.dtype == targets.dtype == torch.int64
        assert tokens.shape == targets.shape and tokens.numel() == TOKENS_PER_STEP
        assert tokens.shape[1] in LENGTHS
        for row, aims in zip(tokens.tolist(), targets.tolist(), strict=True):
            text = bytes(row).decode()
            for left, right, total in re.findall(LINE, text):
                a, b = int(left), int(right)
                assert a + b == int(total)
                assert not sums.is_held_out(a, b) and not {(a, b), (b, a)} & held_out
                seen += 1
            answering = False
            for place, aim in enumerate(aims):
                answering = text[place] == "=" or (answering and text[place] != "\n")
                if not answering:
                    assert aim == IGNORE
                elif place + 1 < len(text):
                    assert aim == ord(text[place + 1])
                else:
                    assert aim in b"0123456789\n"  # its token is past the end
    assert seen > 1000


def test_what_is_packed_is_what_is_drawn() -> None:
    """Line after line, in the order in which `sums.draw` gives them."""
    tokens, _ = train.sequence(random.Random(5), 64)
    rng = random.Random(5)
    expected = "".join(sums.line(*sums.draw(rng)) for _ in range(20))
    assert bytes(tokens).decode() == expected[:64]


def test_a_packed_line_is_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "draw", lambda rng: (12, 7))
    tokens, targets = train.sequence(random.Random(0), 10)
    assert bytes(tokens) == b"12+7=19\n12"
    assert targets == [*[IGNORE] * 4, *b"19\n", *[IGNORE] * 3]


def test_held_out_sums_are_not_drawn() -> None:
    pairs = {sums.draw(random.Random(seed)) for seed in range(5000)}
    assert not any(sums.is_held_out(*pair) for pair in pairs)
    assert all(sums.is_held_out(*pair) for pair in sums.held_out(1000, 1))
