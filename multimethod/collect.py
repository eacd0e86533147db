"""Errors gathered, so that one mistake does not hide the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmpack.multimethod.errors import MmpackError


class Collected:
    """What several checks found, raised together:

    with found.gather():
        check_one()
    with found.gather():
        check_another()
    found.check()
    """

    def __init__(self) -> None:
        self._errors: dict[str, MmpackError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Keep an error of the block for later. The same message counts once."""
        try:
            yield
        except MmpackError as error:
            self._errors.setdefault(str(error), error)

    def check(self) -> None:
        """Raise what was gathered, if anything was: one error as it is, several as one of the
        first one's class that holds all messages, in the order of the spec's lines."""
        errors = list(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(errors[0])("\n\n".join(sorted(self._errors, key=_line))) from errors[0]


def _line(message: str) -> tuple[int, int]:
    """Line and column of a message that begins with `file:line:column:`."""
    place = re.search(r":(\d+):(\d+): ", message.partition("\n")[0])
    return (int(place[1]), int(place[2])) if place else (0, 0)
