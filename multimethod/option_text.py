"""What stands behind an option, as a value: sizes, pairs, numbers. Only the command line takes them
as text; a text that says nothing is a `click.BadParameter`, which says what was expected."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click


def pairs(texts: Sequence[str], form: str) -> dict[str, str]:
    """`["a=1", "b=2"]` as a dict. form: what is expected, for the message."""
    found: dict[str, str] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        if not (left and equals and right):
            raise click.BadParameter(f"{text!r}: expected {form}")
        if left in found:
            raise click.BadParameter(f"{text!r}: {left!r} was given twice")
        found[left] = right
    return found


def byte_count(text: str) -> int:
    """2G is 2,000,000,000 bytes, as in what is printed."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text, re.ASCII)
    if found is None:
        raise click.BadParameter(f"{text!r}: expected a size like 500M, 2G or 4096")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


def lanes(text: str | None) -> dict[str, int]:
    """`npu=1,cpu=2`: workers of lanes."""
    counts = pairs(text.split(","), "NAME=N,…") if text is not None else {}
    for name, count in counts.items():
        if not (count.isascii() and count.isdecimal()):
            raise click.BadParameter(f"'{name}={count}': {count!r} is not a whole number")
    return {name: int(count) for name, count in counts.items()}


def threads(text: str | None) -> int | dict[str, int | None] | None:
    """`1`: all methods in the thread that calls them; `npu=1`: those of a lane."""
    if text is None or text == "1":
        return None if text is None else 1
    found = pairs(text.split(","), "1, or LANE=1,…")
    for lane, count in found.items():
        if count != "1":
            raise click.BadParameter(f"'{lane}={count}': expected 1, or nothing for the whole pool")
    return dict.fromkeys(found, 1)


def ratio(text: str | None) -> list[float] | None:
    """`2:1`: parts that lanes have of the work."""
    try:
        parts = [float(part) for part in text.split(":")] if text is not None else None
    except ValueError:
        parts = [0.0]
    if parts is not None and not all(0 < part < float("inf") for part in parts):
        raise click.BadParameter(f"{text!r}: expected numbers above 0, as in 2:1")
    return parts


def numbers(text: str) -> list[int]:
    """`1,2,3`: tokens."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdecimal()):
            raise click.BadParameter(f"{text!r}: expected numbers of tokens like 1,2,3")
    return [int(part) for part in parts]


def sizes(dims: Sequence[str]) -> dict[str, int]:
    """`["n=3"]`: sizes of dims."""
    found = pairs(dims, "NAME=SIZE")
    for name, size in found.items():
        if not size.isdecimal():
            raise click.BadParameter(f"'{name}={size}': {size!r} is not a whole number")
    return {name: int(size) for name, size in found.items()}
