"""`each`, unrolled: one method for every combination of its values.

    layers.{i}.qkv_proj: {each: {i: 0..3}, module: "layers.{i}", …}

becomes `layers.0.qkv_proj` with the module `layers.0`, and so on. What comes out holds no
template and no `each`, and knows from which place in the file it came (`Origin`). Flows and their
steps are unrolled in `expand_flows.py`, with what stands here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Generic, TypeVar

import attrs
from attrs import frozen

from mmpack.multimethod.spec.mistakes import Finding, Keys, dotted
from mmpack.multimethod.spec.records import (
    Cycle,
    Each,
    InputSpec,
    MethodSpec,
    Spec,
)
from mmpack.multimethod.spec.structure import MANY
from mmpack.multimethod.spec.templates import fill_text, fill_typed, symbols
from mmpack.multimethod.spec.wrong import Wrong

Values = Mapping[str, str | int]
T = TypeVar("T")

_NUMBER = re.compile("[0-9]{1,18}")


@frozen
class Origin:
    """The keys of the entry that something was expanded from, and the values filled in."""

    keys: Keys
    values: Values


@frozen
class Expanded(Generic[T]):
    item: T
    origin: Origin


@frozen
class Expansion:
    """All methods of a spec by their full names, and what is wrong with the templates."""

    methods: dict[str, Expanded[MethodSpec]]
    findings: list[Finding]


def expand_all(spec: Spec) -> Expansion:
    methods: dict[str, Expanded[MethodSpec]] = {}
    findings: list[Finding] = []
    for template, method in spec.methods.items():
        wrong = wrong_templates(template, method)
        if not wrong:
            wrong, made = _methods(template, method, methods)
            methods |= made
        findings += wrong
    return Expansion(methods, findings)


def wrong_templates(template: str, method: MethodSpec) -> list[Finding]:
    """Symbols of one entry that mean nothing, and an `each` that makes too much of it."""
    keys: Keys = ("methods", template)
    wrong = wrong_name(template, method.each, keys, "method")
    wrong += unknown_symbols(attrs.evolve(method, each={}), method.each, keys)
    return wrong


def wrong_name(template: str, each: Each, keys: Keys, what: str) -> list[Finding]:
    """Why entries of such a name cannot be told apart, or are too many."""
    same = f"is not in the {what}'s name, so all {what}s would have the same name"
    wrong = [
        Finding((*keys, "each", symbol), f"{{{symbol}}} {same}", at_key=True)
        for symbol, values in each.items()
        if symbol not in symbols(template) and not isinstance(values, Cycle)
    ]
    wrong += unknown_symbols(template, each, keys, at_key=True)
    if (made := count(each)) > MANY:
        wrong.append(Finding((*keys, "each"), f"this makes {made} {what}s, more than {MANY}"))
    return wrong


def expand_one(template: str, method: MethodSpec) -> dict[str, Expanded[MethodSpec]]:
    """The methods that one entry makes, whatever the others make; none if it can make none."""
    return _methods(template, method, {})[1]


def _methods(
    template: str, method: MethodSpec, taken: Mapping[str, Expanded[MethodSpec]]
) -> tuple[list[Finding], dict[str, Expanded[MethodSpec]]]:
    """The methods that one entry makes: all of them, or what keeps it from making them."""
    keys: Keys = ("methods", template)
    made: dict[str, Expanded[MethodSpec]] = {}
    for values in combinations(method.each):
        name = fill_text(template, values)
        if name in made:
            return [Finding(keys, f"more than one method would be {name!r}", at_key=True)], {}
        if name in taken:
            first = dotted(taken[name].origin.keys)
            return [Finding(keys, f"{first} makes a method {name!r} too", at_key=True)], {}
        try:
            filled = fill(attrs.evolve(method, each={}), values)
        except Wrong as error:
            return [Finding(keys, str(error), at_key=True)], {}
        made[name] = Expanded(filled, Origin(keys, values))
    return [], made


def combinations(each: Each) -> Iterator[dict[str, str | int]]:
    """Every combination of the values; the last symbol runs fastest."""
    free = [enumerate(v) for v in each.values() if not isinstance(v, Cycle)]
    for taken in itertools.product(*free):
        rest, values, number = iter(taken), {}, 0
        for symbol, given in each.items():
            if isinstance(given, Cycle):
                values[symbol] = given[number % len(given)]
            else:
                number, values[symbol] = next(rest)
        yield values


def count(each: Each) -> int:
    """How many combinations there are."""
    return prod(len(values) for values in each.values() if not isinstance(values, Cycle))


def unknown_symbols(
    value: Any, known: Mapping[str, Any], keys: Keys, *, at_key: bool = False
) -> list[Finding]:
    """Every `{x}` in a record that no `each` gives a value to."""
    if isinstance(value, str):
        return [
            Finding(keys, f"{{{symbol}}} is not given by any `each` here", at_key)
            for symbol in symbols(value)
            if symbol not in known
        ]
    findings: list[Finding] = []
    for key, entry in _entries(value):
        if isinstance(key, str) and isinstance(value, Mapping):
            findings += unknown_symbols(key, known, (*keys, key), at_key=True)
        findings += unknown_symbols(entry, known, (*keys, key))
    return findings


def fill(value: Any, values: Values, *, typed: bool = False) -> Any:
    """The same value with all templates in it filled, in keys too.

    typed: a text that is one symbol and nothing else becomes that symbol's value (an argument
    `"{i}"` is a number where `i` is one).
    """
    if isinstance(value, str):
        return fill_typed(value, values) if typed else fill_text(value, values)
    if isinstance(value, InputSpec):
        return attrs.evolve(value, shape=tuple(_size(s, values) for s in value.shape),
                            dtype=fill_text(value.dtype, values))  # fmt: skip
    if isinstance(value, Mapping):
        filled: dict[Any, Any] = {}
        for key, entry in value.items():
            name = fill_text(key, values) if isinstance(key, str) else key
            if name in filled:
                raise Wrong(f"with {_given(values)}, two keys are called {name!r}")
            filled[name] = fill(entry, values, typed=typed)
        return filled
    if isinstance(value, list | tuple):  # and a Cycle
        return type(value)(fill(entry, values, typed=typed) for entry in value)
    if attrs.has(type(value)):
        changes = {
            a.name: fill(getattr(value, a.name), values, typed=a.name == "args")
            for a in attrs.fields(type(value))
        }
        return attrs.evolve(value, **changes)
    return value


def _size(size: int | str, values: Values) -> int | str:
    """A size that a template makes is a number if it reads like one."""
    filled = fill_text(size, values) if isinstance(size, str) else size
    if isinstance(filled, str) and filled != size and _NUMBER.fullmatch(filled):
        return int(filled)
    return filled


def _given(values: Values) -> str:
    return ", ".join(f"{symbol}={value}" for symbol, value in values.items())


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif attrs.has(type(value)):
        for attribute in attrs.fields(type(value)):
            yield attribute.name.rstrip("_"), getattr(value, attribute.name)
