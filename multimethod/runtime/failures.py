"""Why ExecuTorch failed to run a method, in words.

ExecuTorch answers with a bare number and prints the reason, the stock runtime by way of Python's
`sys.stderr`. `LISTENER` stands in for that during a call (`heard`), which costs about 0.4 µs, and
the reason becomes part of the exception.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from torch import Tensor

from mmpack.multimethod.errors import CallError, ExecutionError, MmpackError
from mmpack.multimethod.runtime.chatter import STDERR
from mmpack.multimethod.signature import Signature

CODES = {
    0x01: "Internal",
    0x02: "InvalidState",
    0x03: "EndOfMethod",
    0x04: "AlreadyLoaded",
    0x10: "NotSupported",
    0x11: "NotImplemented",
    0x12: "InvalidArgument",
    0x13: "InvalidType",
    0x14: "OperatorMissing",
    0x15: "RegistrationExceedingMaxKernels",
    0x16: "RegistrationAlreadyRegistered",
    0x20: "NotFound",
    0x21: "MemoryAllocationFailed",
    0x22: "AccessFailed",
    0x23: "InvalidProgram",
    0x24: "InvalidExternalData",
    0x25: "OutOfResources",
    0x30: "DelegateInvalidCompatibility",
    0x31: "DelegateMemoryAllocationFailed",
    0x32: "DelegateInvalidHandle",
}
"""executorch/runtime/core/error.h"""

MOST_LINES = 12
"""Of what ExecuTorch prints, the last so many are shown."""


def with_names(text: str) -> str:
    """A message of ExecuTorch's in which every error code is followed by its name."""

    def named(match: re.Match[str]) -> str:
        name = CODES.get(int(match[1], 16))
        return f"{match[0]} ({name})" if name is not None else match[0]

    return re.sub(r"\berror:? 0x:?([0-9a-fA-F]+)", named, text)


_NOISE = re.compile(r"^\s*$|\] arg \d+ with type id \d+$")


class Listener(io.StringIO):
    """What is `sys.stderr` while a method runs: keeps what is printed there.

    Its `write` and `flush` stay those of StringIO, which are C: a thread that ran Python code or
    waited there would let another one into the binding's redirection of `std::cerr`, which then
    is put back in the wrong order and crashes the process. A terminal or a file has that danger.
    """

    def take(self) -> str:
        """All that was printed, which is then forgotten."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text

    def pass_on(self, stream: TextIO | Any) -> None:
        """Print what was heard in a call that went well where it would have been printed."""
        text = self.take()
        # A call within a call finds this very object in place of the stream.
        target = sys.__stderr__ if stream is self else stream
        if target is not None:
            target.write(text)


LISTENER = Listener()


def heard(execute: Callable[[Sequence[Any]], list[Any]]) -> Callable[..., list[Any]]:
    """What runs a method in the stock runtime, with all that is printed meanwhile in its
    RuntimeErrors, after their own line. `out` is nothing to that runtime."""

    printed = LISTENER.tell

    def run(inputs: Sequence[Any], out: Sequence[Any] | None = None) -> list[Any]:
        # No thread waits here for long: the runtime holds the GIL while a method runs.
        with STDERR:
            stderr, sys.stderr = sys.stderr, LISTENER
            try:
                return execute(inputs)
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{LISTENER.take()}") from error
            finally:
                if sys.stderr is LISTENER:
                    sys.stderr = stderr
                if printed():
                    LISTENER.pass_on(stderr)

    return run


def explained(
    error: Exception,
    signature: Signature,
    ranges: Mapping[str, tuple[int, int]],
    inputs: Sequence[Any],
) -> MmpackError:
    """A run's failure, its first line ExecuTorch's answer and then what it printed, as an error to
    be raised. A CallError if integers of an input are beyond the `ranges` that it was verified
    with: that is then what an index is too large for."""
    first, *printed = str(error).splitlines() or [""]
    lines = [line for line in printed if not _NOISE.search(line)]
    reason = "\n  ".join([with_names(first), *lines[-MOST_LINES:]])
    for spec, value in zip(signature.inputs, inputs, strict=True):
        if spec.name in ranges and isinstance(value, Tensor) and value.numel():
            low, high = ranges[spec.name]
            least, most = int(value.long().min()), int(value.long().max())
            if least < low or most > high:
                return CallError(
                    f"{signature.method}: input {spec.name!r}: expected values from {low} to "
                    f"{high}, got {most if most > high else least}\n  {signature}\n"
                    f"  ExecuTorch failed to run it: {reason}"
                )
    return ExecutionError(f"{signature.method}: ExecuTorch failed to run it: {reason}")
