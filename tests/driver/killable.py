"""Builds in other processes, started quickly, to be watched and killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..compile.processes import DEADLINE, wait_for_end

HERE = Path(__file__).parent


class Build:
    """One build at work: its process, and the events that it tells."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.events: list[str] = []
        self._pipe = pipe
        self._rest = b""

    def next_event(self, seconds: float = DEADLINE) -> str | None:
        """The next event; None if there are no more, or none within that time."""
        while b"\n" not in self._rest:
            readable, _, _ = select.select([self._pipe], [], [], seconds)
            block = os.read(self._pipe, 4096) if readable else b""
            if not block:
                return None
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        self.events.append(line.decode())
        return self.events[-1]

    def finish(self) -> str:
        """The last event: `built`, `interrupted` or the error."""
        while self.next_event() is not None:
            pass
        wait_for_end([self.pid])
        return self.events[-1] if self.events else "nothing"

    def send(self, signal_: int) -> None:
        os.kill(self.pid, signal_)

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it may be done already
            self.send(signal.SIGKILL)
        wait_for_end([self.pid])


class Builder:
    """The process that forks one child for each build; see `builder.py`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "builder.py"), str(requests), str(replies)],
            pass_fds=[requests, replies],
        )
        os.close(requests)
        os.close(replies)
        assert self._reply() == "ready"
        self._number = 0

    def start(
        self,
        spec: Path,
        output: Path,
        *,
        worker: Sequence[str] = (),
        largest_file: int = 0,
        **options: Any,
    ) -> Build:
        """Begin a build. `options` are those of `build`, as plain data."""
        self._number += 1
        fifo = self._folder / f"events{self._number}"
        os.mkfifo(fifo)
        pipe = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        request = {
            "spec": str(spec),
            "output": str(output),
            "pipe": str(fifo),
            "log": str(self._folder / f"log{self._number}"),
            "worker": list(worker),
            "largest_file": largest_file,
            "options": options,
        }
        os.write(self._requests, f"{json.dumps(request)}\n".encode())
        build = Build(int(self._reply()), pipe)
        # Until the child has opened its end, reading would look like the end of all events.
        select.select([pipe], [], [], DEADLINE)
        os.set_blocking(pipe, True)
        return build

    def close(self) -> None:
        os.close(self._requests)
        self._process.wait(DEADLINE)

    def _reply(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            block = os.read(self._replies, 1)
            assert block, "the process that starts builds has ended"
            line += block
        return line.decode().strip()
