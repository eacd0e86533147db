"""The sums: which are drawn for training, which are held out, and how they are written.

    prompt([(12, 7)], (123, 989))  # "12+7=19\\n123+989="

A line reads `A+B=C` with 0 <= A, B <= 999, no padding, and ends in a newline. This module needs
nothing but the standard library.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable

Pair = tuple[int, int]

LIMIT = 1000
HELD_OUT_ONE_IN = 50


def is_held_out(a: int, b: int) -> bool:
    """Whether training must never show a+b; a+b and b+a share their fate."""
    low, high = sorted((a, b))
    return zlib.crc32(str(low * LIMIT + high).encode()) % HELD_OUT_ONE_IN == 0


def held_out(n: int, seed: int) -> list[Pair]:
    """`n` different held-out pairs, drawn evenly from all of them."""
    pairs = [(a, b) for a in range(LIMIT) for b in range(LIMIT) if is_held_out(a, b)]
    return random.Random(seed).sample(pairs, n)


def draw(rng: random.Random) -> Pair:
    """A pair to train on or to show as a worked example; never a held-out one."""
    while True:
        a, b = rng.choice((_even, _even, _any_length, _carrying))(rng)
        if not is_held_out(a, b):
            return a, b


def _even(rng: random.Random) -> Pair:
    return rng.randrange(LIMIT), rng.randrange(LIMIT)


def _any_length(rng: random.Random) -> Pair:
    """Numbers of 1, 2 and 3 digits equally often: an even draw gives 3 digits 9 times in 10."""
    a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
    return a, b


def _carrying(rng: random.Random) -> Pair:
    """Digits that add up to 9 or 10, so that a carry travels far; an even draw seldom does so."""
    a = b = 0
    for _ in range(rng.randint(1, 3)):
        digit = rng.randrange(10)
        a, b = a * 10 + digit, b * 10 + min(9, 9 - digit + rng.choice((0, 0, 1)))
    return a, b


def line(a: int, b: int) -> str:
    """The worked sum, newline included."""
    return f"{a}+{b}={a + b}\n"


def prompt(pairs: Iterable[Pair], question: Pair) -> str:
    """The worked examples, then the question up to its equals sign."""
    return "".join(line(a, b) for a, b in pairs) + f"{question[0]}+{question[1]}="


def encode(text: str) -> list[int]:
    """One token a byte."""
    return list(text.encode("ascii"))


def decode(tokens: Iterable[int]) -> str:
    """The text of the tokens; a byte that is not text shows as U+FFFD."""
    return bytes(tokens).decode("ascii", errors="replace")
