"""How much memory values take, and how much there is.

Asked before tensors are made, since a machine that runs out of memory kills more than the build.
What is certain is counted, the values themselves. A module needs more than that, so no more than
half of what is available may go to them. What is done with can be given back.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import math
import re
import resource
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from mmpack.multimethod.signature import DTYPES, ValueSpec


def bytes_of(values: Iterable[ValueSpec], sizes: Mapping[str, int]) -> int:
    """Bytes of some values, their dims set to `sizes`. A size that is not known counts as one."""
    total = 0
    for value in values:
        shape = (sizes.get(s, 1) if isinstance(s, str) else s for s in value.shape or ())
        total += math.prod(shape) * DTYPES.get(value.dtype, 8)
    return total


def too_much(needed: int) -> str | None:
    """If there is no room for so many bytes: "12.80 GB, more than half of the 20.88 GB that are
    free here"."""
    available = available_memory()
    if available is None or needed <= available // 2:
        return None
    there = f"{available / 1e9:,.2f} GB that are free here"
    return f"{needed / 1e9:,.2f} GB, more than half of the {there}"


def peak_memory() -> int:
    """Bytes that this process has had resident at most, files that it maps among them."""
    try:
        # Since it began its program, see proc_pid_status(5); what getrusage(2) tells begins on
        # Linux with what the parent had when it started this process.
        (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        return int(peak) * 1024
    except (OSError, ValueError):  # another system than Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> bool:
    """Have `peak_memory` tell of what comes from here on; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
    except OSError:
        return False
    return True


def held(process: int) -> int:
    """Bytes that a process has in memory now and that no file is behind: what it maps from files,
    weights and libraries, gives way when others need the room. 0 for a process that is gone, or
    where that cannot be told."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB$", status, re.M))) * 1024


def give_back() -> None:
    """Give memory that is not used any more to the system: what only refers to itself, as exported
    programs do, and what the C library keeps for later (weights of up to 32 MB, in glibc)."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def collect_seldom() -> None:
    """Look for what only refers to itself less often, for the rest of this process, and not at its
    end. What torch and a compiler import are a million objects that stay, and looking at all of
    them over and over took a build up to a fifth of its time."""
    gc.set_threshold(50_000, 20, 50)
    atexit.register(gc.freeze)


def keep_no_blocks() -> None:
    """Have the C library give memory back as soon as it is freed, for the rest of this process, if
    it was asked for in blocks of a megabyte or more. Else glibc learns to keep such blocks, up to
    32 MB, once the first of their size is freed; a give_back() comes after the peak."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            mmap_threshold = -3  # M_MMAP_THRESHOLD, see mallopt(3)
            ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 20)


def available_memory() -> int | None:
    """Bytes that this process can still be given; None where that cannot be told."""
    return min((n for n in (_of_machine(), _of_group()) if n is not None), default=None)


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_group() -> int | None:
    """A container's limit (cgroup 2). What of it is used is not subtracted: most of that is the
    cache of files, which gives way."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
