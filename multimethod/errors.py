"""Every error that mmpack raises on purpose, and the exit code that each one owns.

An error here is about something the user can act on: the message names the place (a line of the
spec, a method and its input, a file and an offset), says what was expected and what came, and,
where a name was wrong, lists the nearest valid ones. Anything else that escapes is a defect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class MmpackError(Exception):
    """Base of all of them. `exit_code` is what the command line exits with."""

    exit_code: ClassVar[int] = 1


class SpecError(MmpackError):
    """A spec that is wrong. `mistakes` holds all of them, in the order of the file."""

    exit_code = 2

    def __init__(self, mistakes: Iterable[object]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n\n".join(str(mistake) for mistake in self.mistakes))


class ModelError(MmpackError):
    """The model cannot be made, or is not what the spec says it is."""

    exit_code = 3


class CompileError(MmpackError):
    """One method could not be compiled. Names the method, the stage and the log."""

    exit_code = 4


class TargetError(MmpackError):
    """A target cannot be built or run here. Says which command would change that."""

    exit_code = 5


class FormatError(MmpackError):
    """A file is not an ExecuTorch program, or is damaged. Names the file and the place in it."""

    exit_code = 6


class LinkError(MmpackError):
    """Objects that do not fit into one program."""

    exit_code = 7


class VerifyError(MmpackError):
    """A method, or a flow, does not compute what eager PyTorch computes."""

    exit_code = 8


class CallError(MmpackError):
    """A method was called with something that its signature does not admit."""

    exit_code = 9


class ExecutionError(MmpackError):
    """ExecuTorch itself failed to load or run a method whose inputs were right."""

    exit_code = 12


class FlowError(MmpackError):
    """A flow cannot be run as it is declared, or with the input it was given. `keys` lead to the
    place in a spec that is to blame, if there is a spec."""

    exit_code = 10

    def __init__(self, message: str, keys: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class OutputError(MmpackError):
    """A file cannot be written. What was there before is untouched."""

    exit_code = 11


class ClusterError(MmpackError):
    """A cluster cannot be reached, or cannot do what this machine would."""

    exit_code = 13


def nearest(name: str, known: Iterable[str], *, shown: int = 8) -> str:
    """What a "not found" message ends with: the nearest known names, or all of them.

    Returns "; did you mean 'qkv_proj'?" when something is close, "; known: a, b, c" when nothing
    is, and "" when nothing is known at all.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return ""
    tail = f", … ({len(names)} in all)" if len(names) > shown else ""
    return "; known: " + ", ".join(names[:shown]) + tail


def counted(count: int, noun: str, plural: str = "") -> str:
    """
    >>> counted(1, "method"), counted(2, "axis", "axes")
    ('1 method', '2 axes')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
