"""How much memory a process and its children have had."""

from __future__ import annotations

import subprocess
import sys

ALLOCATE = "x = b'1' * 300_000_000"
SCRIPT = f"""
import subprocess, sys
from mmpack.multimethod.memory import peak_memory
before = peak_memory()
subprocess.run([sys.executable, "-c", {ALLOCATE!r}])
of_child = peak_memory()
{ALLOCATE}; del x
print(*before, *of_child, *peak_memory())
"""


def test_peaks_stay() -> None:
    parents = bytearray(b"1") * 400_000_000  # no part of them
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    own, child, own_then, child_then, own_last, child_last = map(int, run.stdout.split())
    assert child == 0 and child_then == child_last > 300_000_000
    assert own <= own_then < 300_000_000 < own_last
    assert len(parents) > own_last - 100_000_000
