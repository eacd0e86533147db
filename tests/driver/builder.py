"""Builds in processes that can be killed: one process imports everything once, and forks.

    python builder.py REQUESTS REPLIES

Reads JSON lines from the descriptor REQUESTS, each the arguments of one build, forks, and writes
the child's process id to REPLIES. The child tells every event of its progress on its own pipe,
named in the request, so that a test can strike at any of them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any


class Telling:
    """A display that writes a line for every event."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def _tell(self, text: str) -> None:
        os.write(self._pipe, f"{text}\n".encode())

    def stage(self, name: str, total: int) -> None:
        self._tell(f"stage {name}")

    def start(self, method: str) -> None:
        self._tell(f"start {method}")

    def done(self, method: str, note: str = "") -> None:
        self._tell(f"done {method} {note}".strip())

    def status(self, status: object) -> None: ...

    def explain(self, method: str, reasons: Sequence[str]) -> None:
        self._tell(f"why {method} {'; '.join(reasons)}".strip())


def child(request: dict[str, Any]) -> int:
    import torch

    from mmpack.multimethod.compile import process
    from mmpack.multimethod.driver.build import build
    from mmpack.multimethod.errors import MmpackError

    torch.set_num_threads(1)
    pipe = os.open(request["pipe"], os.O_WRONLY)
    sink = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    if request.get("worker"):
        process.COMMAND = tuple(request["worker"])
    if limit := request.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    options = request["options"]
    try:
        build(request["spec"], request["output"], progress=Telling(pipe), **options)
    except MmpackError as error:
        os.write(pipe, f"error {type(error).__name__}: {error}\n".encode())
        return error.exit_code
    except KeyboardInterrupt:
        os.write(pipe, b"interrupted\n")
        return 130
    os.write(pipe, b"built\n")
    return 0


def main(requests: int, replies: int) -> None:
    import signal

    import mmpack.multimethod.compile.lower
    import mmpack.multimethod.driver.stages

    assert mmpack.multimethod.driver.stages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children here
    with open(requests) as lines:
        os.write(replies, b"ready\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = 70
                try:
                    code = child(request)
                finally:
                    os._exit(code)
            os.write(replies, f"{pid}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
