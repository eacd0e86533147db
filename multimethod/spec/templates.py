"""`{i}` in a text, filled with what `each` gives to `i`.

>>> fill_text("layers.{i}.qkv_proj", {"i": 3})
'layers.3.qkv_proj'
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SLOT = re.compile(r"\{([^{}]*)\}")


def symbols(text: str) -> tuple[str, ...]:
    """The names in braces, in the order in which they come."""
    return tuple(_SLOT.findall(text))


def fill_text(text: str, values: Mapping[str, str | int]) -> str:
    """The text with every known symbol filled; an unknown one stays as it is."""
    if "{" not in text:
        return text
    return _SLOT.sub(lambda slot: str(values.get(slot[1], slot[0])), text)


def fill_typed(text: str, values: Mapping[str, str | int]) -> str | int:
    """Like `fill_text`, but a text that is one symbol and nothing else becomes its value."""
    slot = _SLOT.fullmatch(text)
    return values[slot[1]] if slot and slot[1] in values else fill_text(text, values)
