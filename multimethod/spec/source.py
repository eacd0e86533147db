"""The text of a spec with positions: YAML -> plain Python data, and keys -> line and column.

    source, mistakes = read("spec.yaml")
    source.data["methods"]["attention"]["target"]                # 'cpuu'
    source.locate(("methods", "attention", "target"))            # (14, 13)
    raise SpecError([source.mistake(keys, "no such target")])

What a spec can do without is a mistake here: anchors, aliases, tags, merge keys, several
documents. That keeps one place in the file for every value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from attrs import frozen

from mmpack.multimethod.errors import SpecError, nearest
from mmpack.multimethod.spec.events import Places, Span, Stopped, parse
from mmpack.multimethod.spec.mistakes import Finding, Keys, Mistake, Mistakes, dotted
from mmpack.multimethod.spec.templates import fill_text

# What YAML takes for the end of a line; `str.splitlines` knows more of them.
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


@frozen
class Source:
    """One file. `data` is made of dict, list, str, int, float, bool and None."""

    path: str
    lines: tuple[str, ...]
    data: dict[str, Any]
    places: Places

    def locate(
        self, keys: Keys, *, at_key: bool = False, fill: Mapping[str, str | int] | None = None
    ) -> tuple[int, int]:
        """Line and column, from 1, of the value (or the key) that these keys lead to."""
        span = self._span(self.resolve(keys, fill), at_key)
        return span.line, span.column

    def mistake(
        self,
        keys: Keys,
        message: str,
        *,
        at_key: bool = False,
        fill: Mapping[str, str | int] | None = None,
    ) -> Mistake:
        """A mistake at the value (or the key) that these keys lead to."""
        place = self.resolve(keys, fill)
        return place_mistake(
            self.path, self.lines, self._span(place, at_key), dotted(place), message
        )

    def find(self, finding: Finding, fill: Mapping[str, str | int] | None = None) -> Mistake:
        return self.mistake(finding.keys, finding.message, at_key=finding.at_key, fill=fill)

    def resolve(self, keys: Keys, fill: Mapping[str, str | int] | None = None) -> Keys:
        """The keys as they stand in the file.

        A key that is not there is left out: the records know `dims.chunk.min` where the file
        has the short form `chunk: 32`, and a missing key is missed where its mapping stands.
        With `fill`, the key `keys.{i}` in the file answers to `keys.0`.
        """
        place: Keys = ()
        for key in keys:
            if (*place, key) in self.places.values:
                place = (*place, key)
            elif fill and isinstance(key, str):
                siblings = (k for k in self.places.values if k[:-1] == place and k)
                filled = (k for k in siblings if fill_text(str(k[-1]), fill) == key)
                place = next(filled, place)
        return place

    def _span(self, place: Keys, at_key: bool) -> Span:
        value, key = self.places.values[place], self.places.keys.get(place)
        # A block has no end on its line that could be underlined, and nothing has no place at
        # all: the key names them better.
        return key if key and (at_key or value.block or value.empty) else value


def read(path: str | Path) -> tuple[Source, Mistakes]:
    """Reads a file. Raises `SpecError` where nothing can be made of it; the mistakes that come
    back beside the source do not keep the rest of it from being checked."""
    text = _text(Path(path))
    lines = tuple(_LINE_END.split(text))
    places = Places()

    def placed(found: Iterable[tuple[Span, Keys, str]]) -> Mistakes:
        return Mistakes(
            place_mistake(str(path), lines, span, dotted(keys), message)
            for span, keys, message in found
        )

    try:
        data, found = parse(text, places)
    except Stopped as stopped:
        raise SpecError(placed(stopped.found)) from stopped.__cause__
    return Source(str(path), lines, data, places), placed(found)


def place_mistake(
    path: str, lines: tuple[str, ...], span: Span, where: str, message: str
) -> Mistake:
    text = lines[span.line - 1] if span.line <= len(lines) else ""
    end = span.end_column if span.end_line == span.line else len(text) + 1
    width = max(1, len(text[span.column - 1 : end - 1].rstrip()))
    return Mistake(path, span.line, span.column, text, width, where, message)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        _refuse(path, error)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        lines = tuple(_LINE_END.split(raw.decode("utf-8-sig", errors="replace")))
        above = _LINE_END.split(before)
        line, column = len(above), len(above[-1]) + 1
        message = f"expected UTF-8 text, got the byte 0x{raw[error.start]:02x}"
        span = Span(line, column, line, column + 1)
        raise SpecError([place_mistake(str(path), lines, span, "", message)]) from error


def _refuse(path: Path, error: OSError | ValueError) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        folder = path.parent
        specs = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        message = f"no such file{nearest(path.name, specs)}"
    elif isinstance(error, IsADirectoryError):
        message = "expected a file, got a folder"
        if specs := sorted(p.name for p in path.glob("*.y*ml")):
            message += f"; it holds {', '.join(specs)}"
    elif isinstance(error, OSError):
        message = f"cannot be read: {error.strerror}"
    else:
        message = f"cannot be read: {error}"
    raise SpecError([Mistake(str(path), 0, 0, "", 0, "", message)]) from error
