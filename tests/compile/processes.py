"""Waiting for things that other processes do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE = 60.0
"""Seconds: far more than anything takes here, on a machine that does much else."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs, or holds files and locks. One that ended and was not waited for does
    not; but of one that is killed the first thread may have ended before the others."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z" or len(threads) > 1


def wait_for_end(pids: list[int]) -> None:
    for pid in pids:
        wait_for(lambda pid=pid: not alive(pid), f"the end of process {pid}")  # type: ignore[misc]


def wait_for_pids(path: Path) -> list[int]:
    wait_for(lambda: path.exists() and path.read_text() != "", f"{path.name} written")
    return [int(text) for text in path.read_text().split()]
