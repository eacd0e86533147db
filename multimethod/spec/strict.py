"""Strict hooks for scalars: no text becomes a number, no number a truth value, by itself."""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import attrs

from mmpack.multimethod.errors import nearest
from mmpack.multimethod.spec.scalars import trap, words
from mmpack.multimethod.spec.wrong import Wrong

SCALARS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "nothing",
}
_RANGE = re.compile(r"\s*(-?\d{1,19})\s*\.\.\s*(-?\d{1,19})\s*")


def scalar(value: Any, kind: Any) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    help = trap(value) if kind is bool else ""
    if kind is str and type(value) in (int, float, bool):
        help = "; quotes make it text"
    raise Wrong(f"expected {SCALARS[kind]}, got {words(value)}{help}")


def scalar_union(value: Any, kind: Any) -> Any:
    kinds = get_args(kind)
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    names = [
        name
        for kind, name in SCALARS.items()
        if kind in kinds and kind is not NoneType and not (kind is int and float in kinds)
    ]
    comma = ", or ".join(names) + (";" if names[1:] else ",")
    raise Wrong(f"expected {comma} got {words(value)}")


def literal(value: Any, kind: Any) -> Any:
    for choice in get_args(kind):
        if type(choice) is type(value) and choice == value:
            return choice
    choices = [str(choice) for choice in get_args(kind)]
    hint = nearest(value, choices) if isinstance(value, str) else ""
    close = hint if "did you mean" in hint else ""
    raise Wrong(f"expected one of {', '.join(choices)}; got {words(value)}{close}")


def is_switch(kind: Any) -> bool:
    """An option that is on, off, or on with options of its own, which are a record: `bool | R`."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return len(kinds) == 2 and kinds[0] is bool and attrs.has(kinds[1])


def is_scalar_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and all(k in SCALARS for k in get_args(kind))


def integer_range(value: Any, _: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, str) and (ends := _RANGE.fullmatch(value)):
        return int(ends[1]), int(ends[2])
    if isinstance(value, list | tuple) and [type(end) for end in value] == [int, int]:
        return value[0], value[1]
    raise Wrong(f"expected a range like 0..255, got {words(value)}")
