"""Pieces of YAML text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Lines = list[str]
WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""What some YAML takes for no text; as it does numbers and dates, which begin with digits."""


def pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def joined(blocks: Iterable[Lines]) -> Lines:
    """Indented, with an empty line between."""
    lines: Lines = []
    for block in blocks:
        lines += [""] if lines else []
        lines += [f"  {line}" if line else "" for line in block]
    return lines


def text(value: str) -> str:
    """A text as YAML, quoted where it must be."""
    plain = all(c.isalnum() or c in "./_-" for c in value) and value.lower() not in WORDS
    plain = plain and (value[:1].isalpha() or value.startswith(("/", "./", "../")))
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
