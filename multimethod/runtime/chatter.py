"""What ExecuTorch's C++ side prints while it loads something: caught, and shown only on failure.

The runtime answers a failed load with a bare number and prints the reason; a successful load
prints remarks about the CPU. Here the reason goes into the error, and the remarks nowhere.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

STDERR = threading.RLock()
"""Held by whoever has put something else in place of the process's stderr, from before that until
it is back: threads that took turns within that would put back each other's. A call within a call
(in a signal's handler, in the release of a program) may have it again."""


@contextmanager
def caught() -> Iterator[Callable[[], str]]:
    """Redirect the process's stdout and stderr, also those of C++, to a temporary file.

    Yields a function that returns what has been printed so far. The redirection holds for the
    whole process, so keep what is inside short. Threads take turns, and so do calls of methods.
    """
    with STDERR, tempfile.TemporaryFile(buffering=0) as file:
        # Both Python's streams and the descriptors: ExecuTorch's Python binding prints to
        # `sys.stderr`, which a notebook or a test has put elsewhere, and the rest to descriptor 2.
        stream = io.TextIOWrapper(file, errors="replace", write_through=True)  # type: ignore[type-var]
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            with redirect_stdout(stream), redirect_stderr(stream):
                yield lambda: _text(file.fileno())
        finally:
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)
            stream.detach()


def _text(fd: int, most: int = 1 << 16) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, most, max(0, size - most)).decode(errors="replace").strip()
