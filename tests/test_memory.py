"""How much memory a process and its children have had."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmpack.multimethod.memory import held

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


FORGETTING = """
from mmpack.multimethod.memory import forget_peak, peak_memory
bytes(b"1" * 300_000_000)
before = peak_memory()
print(forget_peak(), before, peak_memory())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is about Linux")
def test_a_peak_can_be_forgotten() -> None:
    told = subprocess.check_output([sys.executable, "-c", FORGETTING], text=True).split()
    assert told[0] == "True" and int(told[2]) < 100_000_000 < 300_000_000 < int(told[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is about Linux")
def test_what_a_process_holds_is_not_what_it_maps_from_files(tmp_path: Path) -> None:
    size = 200_000_000
    file = tmp_path / "mapped"
    with file.open("wb") as made:
        made.truncate(size)
    with file.open("rb") as mapped, mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ) as memory:
        before = held(os.getpid())
        assert sum(memory[place] for place in range(0, size, 4096)) == 0  # all of it is resident
        assert before > 10**6 and held(os.getpid()) - before < size // 10
        taken = b"1" * size
        assert held(os.getpid()) - before > size // 10 * 9
        del taken


def test_a_process_that_is_gone_holds_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    assert held(gone.pid) == 0


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
