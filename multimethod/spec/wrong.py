"""What goes wrong while a record is made, and how cattrs' trees of it become findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from mmpack.multimethod.errors import nearest
from mmpack.multimethod.spec.mistakes import Finding, Keys


class Wrong(ValueError):
    """One value that is not what it should be."""

    def __init__(self, message: str, *, at_key: bool = False) -> None:
        super().__init__(message)
        self.at_key = at_key


def each_item(items: Iterable[tuple[Any, Any]], make: Callable[[Any, Any], Any]) -> dict[Any, Any]:
    """Makes every item of a list or mapping; fails only after the last one has been tried."""
    made: dict[Any, Any] = {}
    errors: list[Exception] = []
    for key, value in items:
        try:
            made[key] = make(key, value)
        except Exception as error:
            error.add_note(IterableValidationNote(f"at {key!r}", key, None))
            errors.append(error)
    if errors:
        raise IterableValidationError("some items are wrong", errors, dict)
    return made


def problems(error: BaseException, keys: Keys = ()) -> Iterator[Finding]:
    """The leaves of the tree, each with the keys that lead to it."""
    here = (*keys, *_steps(error))
    if isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            yield from problems(inner, here)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [a.name.rstrip("_") for a in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields, key=str):
            hint = nearest(str(key), known, shown=len(known)) or "; there are no options"
            yield Finding((*here, key), f"this key means nothing here{hint}", at_key=True)
    elif isinstance(error, KeyError) and here:
        # cattrs looks the key up: the field has no default, and its key is not there.
        yield Finding(here[:-1], f"the key {here[-1]!r} is missing", at_key=True)
    elif isinstance(error, Wrong):
        yield Finding(here, str(error), at_key=error.at_key)
    else:
        # A backend's option record has checks of its own (attrs validators).
        yield Finding(here, str(error.args[0]) if error.args else type(error).__name__)


def _steps(error: BaseException) -> Keys:
    """The keys that the notes on an error name; the innermost note was added first."""
    steps: list[str | int] = []
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, IterableValidationNote):
            steps.insert(0, note.index)
        elif isinstance(note, AttributeValidationNote):
            steps.insert(0, note.name.rstrip("_"))
    return tuple(steps)
