"""How much memory a process and its children have had."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from mmpack.multimethod.memory import peak_memory
before = peak_memory()
x = b"1" * 300_000_000
del x
print(before, peak_memory())
"""


def test_a_peak_stays_and_is_not_the_parents() -> None:
    parents = bytearray(b"1") * 400_000_000
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    before, after = map(int, run.stdout.split())
    assert before < 100_000_000 and 300_000_000 < after < len(parents)


KEEPING = """
import sys
from pathlib import Path
from mmpack.multimethod.memory import keep_no_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "none":
    keep_no_blocks()
b"1" * 20_000_000  # the size that glibc then keeps
before = resident()
blocks = [b"1" * 20_000_000 for _ in range(5)]
above = bytes(100_000)
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is about glibc")
def test_large_blocks_are_given_back_at_once() -> None:
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", KEEPING, keep], text=True))
        for keep in ("some", "none")
    )
    assert given_back < 10_000_000 < 90_000_000 < kept
