"""Time and memory of linking a gigabyte, against copying it.

pytest tests/bench/test_link.py --benchmark-only -s
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.link import link, open_program

from ..link.large import large_program, link_in_child

GB = 1 << 30
MOST_RATIO = 3
MOST_MEMORY = GB / 4


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = large_program(tmp_path_factory.mktemp("large") / "large.pte", GB)
    yield path
    path.unlink()


def copied(source: Path, target: Path) -> float:
    """Seconds for reading and writing a file, in chunks, until it is on the disk."""
    started = time.perf_counter()
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(1 << 20):
            write.write(chunk)
        write.flush()
        os.fsync(write.fileno())
    return time.perf_counter() - started


def test_linking_against_copying(benchmark: Any, gigabyte: Path, tmp_path: Path) -> None:
    """Held to the limits are the medians of both, measured in one run, and the peak of memory."""
    copying = statistics.median(copied(gigabyte, tmp_path / "copy.pte") for _ in range(3))
    (tmp_path / "copy.pte").unlink()
    benchmark.pedantic(link, args=([gigabyte], tmp_path / "x.pte"), rounds=3)
    took = link_in_child(tmp_path / "x.pte", gigabyte)
    ratio = benchmark.stats.stats.median / copying
    benchmark.extra_info.update(ratio=ratio, peak_mb=took.memory / 1e6)
    print(f"\n1 GiB: link / copy = {ratio:.2f}, peak memory +{took.memory / 1e6:.1f} MB")
    assert ratio <= MOST_RATIO
    assert took.memory <= MOST_MEMORY


def test_opening(benchmark: Any, gigabyte: Path) -> None:
    """Open and check, without the checksum: what `inspect` does first."""
    benchmark(lambda: open_program(gigabyte, integrity=False).close())


def test_checksum(benchmark: Any, gigabyte: Path, tmp_path: Path) -> None:
    link([gigabyte], tmp_path / "x.pte")
    benchmark.pedantic(lambda: open_program(tmp_path / "x.pte").close(), rounds=3)
    rate = (tmp_path / "x.pte").stat().st_size / benchmark.stats.stats.min / 1e9
    print(f"\nchecksum: {rate:.1f} GB/s")
