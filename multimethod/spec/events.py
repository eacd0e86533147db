"""YAML text -> data and the place of every key and value in it.

The tree is built from the parser's events, not by its constructor: the events carry where each
thing begins and ends, and let all duplicate keys be reported, not only the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from attrs import Factory, define, frozen

from mmpack.multimethod.spec.mistakes import Keys
from mmpack.multimethod.spec.scalars import resolve, words

DEEPEST = 40
"""No spec is nested deeper than this, and the recursion below has an end."""


@frozen
class Span:
    """From the first character to the one after the last; lines and columns count from 1."""

    line: int
    column: int
    end_line: int
    end_column: int
    block: bool = False

    @property
    def empty(self) -> bool:
        return (self.line, self.column) == (self.end_line, self.end_column)


@define
class Places:
    """Where every key and every value stands."""

    keys: dict[Keys, Span] = Factory(dict)
    values: dict[Keys, Span] = Factory(dict)


Found = tuple[Span, Keys, str]


class Stopped(Exception):
    """The rest cannot be read. `found` holds what was wrong up to here, and why it stops."""

    def __init__(self, found: list[Found]) -> None:
        self.found = found
        super().__init__(found[-1][-1])


def parse(text: str, places: Places) -> tuple[dict[str, Any], list[Found]]:
    """The data of the one document in `text`, and the mistakes that do not stand in its way.

    Raises `Stopped` on anything that is not YAML, and on YAML that is no mapping.
    """
    tree = _Tree(text, places)
    data = tree.document()
    return data, tree.found


class _Tree:
    def __init__(self, text: str, places: Places) -> None:
        self.text = text
        self.places = places
        self.found: list[Found] = []
        self.holes = False  # the data misses something: to check it would only mislead
        self.events = self._events()

    def document(self) -> dict[str, Any]:
        next(self.events)  # the stream starts
        event = next(self.events)
        if _kind(event) == "StreamEnd":
            self._stop(Span(1, 1, 1, 1), "the file is empty; expected a spec")
        event = next(self.events)
        data: Any = self._node(event, ())
        if self.holes:
            raise Stopped(self.found)
        if data is None:
            self._stop(self.places.values[()], "the file is empty; expected a spec")
        if not isinstance(data, dict):
            self._stop(_span(event), f"expected a mapping with mmpack, model, …; got {words(data)}")
        next(self.events)  # the document ends
        event = next(self.events)
        if _kind(event) != "StreamEnd":
            self._stop(_span(event), "expected one YAML document, got a second one")
        return dict(data)

    def _node(self, event: Any, keys: Keys) -> Any:
        span = _span(event)
        self.places.values[keys] = span
        if len(keys) > DEEPEST:
            self._stop(span, f"nested more than {DEEPEST} levels deep")
        kind = _kind(event)
        if kind == "Alias":
            self.holes = True
            self._add(span, keys, "got an alias; write the value out, or put the text in quotes")
            return None
        if event.anchor is not None:
            self._add(span, keys, "got an anchor; a spec has none")
        if event.ctag is not None:
            self._add(span, keys, "got a YAML tag; a spec has none, quotes make it text")
        if kind == "Scalar":
            plain = event.implicit[0] or event.ctag is not None
            return resolve(event.value) if plain else event.value
        return self._sequence(keys) if kind == "SequenceStart" else self._mapping(keys)

    def _sequence(self, keys: Keys) -> list[Any]:
        items: list[Any] = []
        while _kind(event := next(self.events)) != "SequenceEnd":
            items.append(self._node(event, (*keys, len(items))))
        self._close(keys, event)
        return items

    def _mapping(self, keys: Keys) -> dict[Any, Any]:
        items: dict[Any, Any] = {}
        while _kind(event := next(self.events)) != "MappingEnd":
            key = self._key(event, keys)
            if key is None:
                self._skip(next(self.events))
                continue
            here = (*keys, key)
            if here in self.places.keys:
                first = self.places.keys[here]
                again = f"the key {key!r} is given twice; first on line {first.line}"
                self._add(_span(event), here, again)
                self._skip(next(self.events))
            else:
                self.places.keys[here] = _span(event)
                items[key] = self._node(next(self.events), here)
        self._close(keys, event)
        return items

    def _key(self, event: Any, keys: Keys) -> str | int | None:
        """A key is text, or a whole number (an axis); `true:` is the text 'true'."""
        if _kind(event) != "Scalar":
            self._add(_span(event), keys, "expected a name as the key")
            self._skip(event)
            return None
        value = resolve(event.value) if event.implicit[0] else event.value
        if event.implicit[0] and event.value == "<<":
            self._add(_span(event), keys, "got a merge key; a spec has none")
            return None
        if event.anchor is not None or event.ctag is not None:
            self._add(_span(event), keys, "expected a name as the key, without anchor or tag")
        return value if type(value) is int else str(event.value)

    def _skip(self, event: Any) -> None:
        """Passes over one node without a trace. Its aliases and anchors do no harm there."""
        depth = 0
        while True:
            kind = _kind(event)
            depth += kind.endswith("Start") - kind.endswith("End")
            if depth == 0:
                return
            event = next(self.events)

    def _close(self, keys: Keys, event: Any) -> None:
        """A collection in brackets ends where its closing bracket stands."""
        start = self.places.values[keys]
        if not start.block:
            end = event.end_mark
            self.places.values[keys] = Span(start.line, start.column, end.line + 1, end.column + 1)

    def _add(self, span: Span, keys: Keys, message: str) -> None:
        self.found.append((span, keys, message))

    def _stop(self, span: Span, message: str) -> None:
        raise Stopped([*self.found, (span, (), message)])

    def _events(self) -> Iterator[Any]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError
        from ruamel.yaml.reader import ReaderError

        last: Any = None
        try:
            for last in YAML(typ="safe", pure=True).parse(self.text):
                yield last
        except MarkedYAMLError as error:
            mark, message = error.problem_mark or error.context_mark, _explain(error, self.text)
            if error.context == "while scanning a quoted scalar" and "end of" in message:
                mark, message = error.context_mark, "the quote that opens here is never closed"
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            self._broken(line, column, message, error)
        except ReaderError as error:
            above = re.split("\r\n|[\n\r\x85\u2028\u2029]", self.text[: error.position])
            message = f"the character U+{error.character:04X} cannot stand in a YAML file"
            self._broken(len(above), len(above[-1]) + 1, message, error)
        except Exception as error:  # its scanner meets some garbage with bare Python errors
            line, column = (last.end_mark.line + 1, last.end_mark.column + 1) if last else (1, 1)
            self._broken(line, column, f"this is not YAML ({error})", error)

    def _broken(self, line: int, column: int, message: str, cause: Exception) -> None:
        span = Span(line, column, line, column + 1)
        raise Stopped([*self.found, (span, (), message)]) from cause


def _kind(event: Any) -> str:
    return type(event).__name__.removesuffix("Event")


def _span(event: Any) -> Span:
    start, end = event.start_mark, event.end_mark
    block = _kind(event) in ("SequenceStart", "MappingStart") and not event.flow_style
    return Span(start.line + 1, start.column + 1, end.line + 1, end.column + 1, block)


def _explain(error: Any, text: str) -> str:
    """The parser's problem, with a word on what most often lies behind it."""
    problem = str(error.problem or error).splitlines()[0]
    if "'\\t'" in problem:
        return "a tab; YAML wants spaces here"
    if error.context in ("while scanning an alias", "while scanning an anchor"):
        return "text that begins with * or & needs quotes"
    if "expected ',' or" in problem and "{" in text:
        return f"{problem}; inside [ ] and {{ }}, text with braces needs quotes"
    if problem == "mapping values are not allowed here":
        return "a ':' cannot stand here; text that holds ': ' needs quotes"
    if problem.startswith("could not find expected ':'"):
        return "expected ':' after the key"
    return problem
