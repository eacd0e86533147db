"""What ExecuTorch's C++ side prints while it loads something: caught, and shown only on failure.

The runtime answers a failed load with a bare number and prints the reason; a successful load
prints remarks about the CPU. Here the reason goes into the error, and the remarks nowhere.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught() -> Iterator[Callable[[], str]]:
    """Redirect the process's stdout and stderr, also those of C++, to a temporary file.

    Yields a function that returns what has been printed so far. The redirection holds for the
    whole process, so keep what is inside short.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield lambda: _text(file.fileno())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)


def _text(fd: int, most: int = 1 << 16) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, most, max(0, size - most)).decode(errors="replace").strip()
