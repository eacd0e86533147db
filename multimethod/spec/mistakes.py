"""What is wrong with a spec, and where.

    spec.yaml:14:13: methods.attention.target: no target is called 'cpuu'; did you mean 'cpu'?
       14 |     target: cpuu
          |             ^^^^

A rule yields a `Finding`, which knows the keys that lead to the place; the source turns that into
a `Mistake`, which knows the line. All of them are collected, and raised together at the end.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

from attrs import frozen

from mmpack.multimethod.errors import SpecError, nearest

Keys = tuple[str | int, ...]
"""The keys that lead to a place in a spec, such as ("methods", "attention", "outputs", 0)."""

SHOWN = 120
"""Of a longer line than this, only the part around the mistake is shown."""


@frozen
class Finding:
    """A mistake whose line is not looked up yet. `at_key`: it is the key that is wrong, or that
    misses something, and not the value beside it."""

    keys: Keys
    message: str
    at_key: bool = False

    def under(self, *keys: str | int) -> Finding:
        return Finding(keys + self.keys, self.message, self.at_key)


Findings = Iterator[Finding]


@frozen
class Mistake:
    """`line` and `column` count from 1; line 0 means the file as a whole. `text` is that line,
    `width` how many of its characters are meant, `where` the keys that lead there."""

    path: str
    line: int
    column: int
    text: str
    width: int
    where: str
    message: str

    def __str__(self) -> str:
        if not self.line:
            return f"{self.path}: {self.message}"
        where = f"{self.where}: " if self.where else ""
        head = f"{self.path}:{self.line}:{self.column}: {where}{self.message}"
        text, before, width = _window(self.text, self.column - 1, self.width)
        # A tab stays a tab and a wide character takes two cells, so that the marks line up.
        indent = "".join("\t" if c == "\t" else " " * _cells(c) for c in text[:before])
        marks = "^" * max(1, sum(_cells(c) for c in text[before : before + width]))
        return f"{head}\n{self.line:>5} | {text}\n      | {indent}{marks}"


def _cells(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _window(text: str, before: int, width: int) -> tuple[str, int, int]:
    """The part of a line that is shown, with nothing in it that could confuse a terminal."""
    text = "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(text) <= SHOWN:
        return text, before, width
    start = min(max(0, before - SHOWN // 2), len(text) - SHOWN)
    end = start + SHOWN
    head, tail = "…" if start else "", "…" if end < len(text) else ""
    shown = min(width, end - before)
    return head + text[start:end] + tail, before - start + len(head), shown


class Mistakes:
    """Collects mistakes; the same one at the same place counts once."""

    def __init__(self, mistakes: Iterable[Mistake] = ()) -> None:
        self._all: dict[Mistake, None] = dict.fromkeys(mistakes)

    def __iter__(self) -> Iterator[Mistake]:
        """In the order of the file."""
        return iter(sorted(self._all, key=lambda mistake: (mistake.line, mistake.column)))

    def __len__(self) -> int:
        return len(self._all)

    def add(self, mistake: Mistake) -> None:
        self._all[mistake] = None

    def check(self) -> None:
        """Raises one `SpecError` with all that was collected, if anything was."""
        if self._all:
            raise SpecError(self)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that does not exist."""
    return f"no {kind} is called {name!r}{nearest(name, known)}"


def dotted(keys: Keys) -> str:
    """
    >>> dotted(("flow", "prefill", "steps", 1, "run"))
    'flow.prefill.steps[1].run'
    """
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")
