"""Errors gathered, so that one mistake does not hide the others."""

from __future__ import annotations

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
        first one's class that holds all messages."""
        errors = list(self._errors.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(errors[0])("\n\n".join(self._errors)) from errors[0]
