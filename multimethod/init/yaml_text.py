"""Pieces of YAML text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Lines = list[str]


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
    plain = all(c.isalnum() or c in "./_-" for c in value) and value[:1] not in "-"
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
