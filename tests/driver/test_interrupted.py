"""Builds that are stopped and started again, and disks that are full, small or read-only.

See `conftest.py` for what makes them quick.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..compile.processes import wait_for_end
from .killable import Build, Builder
from .left import left_beside, left_in
from .test_build import SPEC

MOMENTS = [
    "stage export",
    "done forward",
    "stage compile",
    "start forward",
    "done forward",
    "start matmul",
    "stage link",
    "stage verify",
    "start matmul",
    "stage link",
]
"""Events of a build with one worker, in their order."""


def until(build: Build, moment: int) -> None:
    """Wait for that moment."""
    for event in MOMENTS[: moment + 1]:
        while build.next_event() != event:
            assert build.events[-1] != "built", build.events


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_anywhere_it_goes_on_where_it_was(
    builder: Builder, replay: tuple[str, ...], program: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """Each build is stopped a little later than the one before, on the same cache."""
    output, cache = tmp_path / "out" / "model.pte", tmp_path / "cache"
    output.parent.mkdir()
    output.write_bytes(b"the old one")
    for moment in range(len(MOMENTS)):
        for entry in cache.glob("*/*"):
            entry.unlink()
        build = builder.start(SPEC, output, worker=replay, cache=str(cache))
        until(build, moment)
        build.send(how)
        # Of what comes too late, the build is done.
        assert build.finish() in ("interrupted", "built") or how == signal.SIGKILL
        wait_for_end([build.pid])
        assert output.read_bytes() in (b"the old one", program.read_bytes())
        if how == signal.SIGINT:  # what was on its way is gone at once
            assert left_beside(output) == [] and left_in(cache) == []
        output.write_bytes(b"the old one")
        again = builder.start(SPEC, output, worker=replay, cache=str(cache))
        assert again.finish() == "built"
        compiled = again.events[again.events.index("stage compile") :]
        exported = again.events[: again.events.index("stage compile")]
        assert ("done forward cached" in exported) is (moment >= 1)
        assert ("done forward cached" in compiled) is (moment >= 4)
        assert ("start forward" in compiled[: compiled.index("stage link")]) is (moment < 4)
        assert ("done matmul cached" in compiled) is (moment >= 6)
        assert output.read_bytes() == program.read_bytes()
        assert left_beside(output) == [] and left_in(cache) == []
        output.write_bytes(b"the old one")
    wait_for_end(list(map(int, (Path(replay[-1]) / "pids").read_text().split())))


Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a file system of its own in memory, with these options of mount(8)."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_output_may_be_on_another_file_system_than_the_cache(
    builder: Builder, replay: tuple[str, ...], program: Path, tmp_path: Path, disk: Disk
) -> None:
    here, there = tmp_path / "here", disk("size=10m")
    here.mkdir()
    assert os.stat(here).st_dev != os.stat(there).st_dev
    for output, cache in ((there / "a.pte", here / "cache"), (here / "b.pte", there / "cache")):
        output.write_bytes(b"the old one")
        build = builder.start(SPEC, output, worker=replay, cache=str(cache))
        assert build.finish() == "built"
        assert output.read_bytes() == program.read_bytes()
        assert left_in(cache) == []


@pytest.mark.parametrize("room", ["4k", "24k", "60k", "80k"])
def test_a_cache_on_a_full_disk_is_an_output_error(
    builder: Builder, replay: tuple[str, ...], program: Path, tmp_path: Path, disk: Disk, room: str
) -> None:
    cache = disk(f"size={room}") / "cache"
    output = tmp_path / "out" / "model.pte"
    output.parent.mkdir()
    output.write_bytes(b"the old one")
    last = builder.start(SPEC, output, worker=replay, cache=str(cache)).finish()
    assert last.startswith("error OutputError: ") and str(cache) in last, last
    assert output.read_bytes() == b"the old one"
    assert left_beside(output) == [] and left_in(cache) == []
    subprocess.run(["mount", "-o", "remount,size=10m", str(cache.parent)], check=True)
    assert builder.start(SPEC, output, worker=replay, cache=str(cache)).finish() == "built"
    assert output.read_bytes() == program.read_bytes()


def test_what_cannot_be_written_to_is_told_before_anything_is_compiled(
    builder: Builder, replay: tuple[str, ...], tmp_path: Path, disk: Disk
) -> None:
    """A file system that is read-only refuses root too."""
    place = disk("size=1m")
    output = place / "model.pte"
    output.write_bytes(b"the old one")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    cases = (
        (output, tmp_path / "cache", f"{output}: cannot be written: no permission to write in"),
        (tmp_path / "out.pte", place / "cache", f"the cache {place / 'cache'} cannot be used"),
    )
    for target, cache, says in cases:
        build = builder.start(SPEC, target, worker=replay, cache=str(cache))
        assert build.finish().startswith(f"error OutputError: {says}"), build.events
        assert not any(event.startswith("stage") for event in build.events)
    assert output.read_bytes() == b"the old one" and not (tmp_path / "out.pte").exists()
