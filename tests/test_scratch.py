"""What is on its way to a file: never half there, never left behind, never taken from its owner."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mmpack.multimethod.scratch import replacing, scratch_folder, sweep

SLOW_WRITER = """
import os, sys, time
from mmpack.multimethod.scratch import replacing
with replacing(sys.argv[1], 10) as out:
    os.write(out, b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("before", [None, b"the old one"])
def test_a_killed_writer_leaves_the_old_file(before: bytes | None, tmp_path: Path) -> None:
    output = tmp_path / "out.pte"
    if before is not None:
        output.write_bytes(before)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_WRITER), str(output)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        with replacing(output, 3) as out:  # a living writer's file is left alone
            os.write(out, b"new")
        assert len(list(tmp_path.glob(".out.pte.*.tmp"))) == 1
        if before is not None:
            output.write_bytes(before)
        else:
            output.unlink()
        writer.send_signal(signal.SIGKILL)
    assert (output.read_bytes() if output.exists() else None) == before
    assert len(list(tmp_path.glob(".out.pte.*.tmp"))) == 1
    with replacing(output, 3) as out:
        os.write(out, b"new")
    assert output.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.pte"]


def killed_in_a_folder(parent: Path, name: str) -> None:
    """Has a process killed while it has a scratch folder with something in it."""
    pid = os.fork()
    if pid == 0:
        with scratch_folder(parent, name) as folder:
            (folder / "below").mkdir()
            (folder / "below" / "half.pte").write_bytes(bytes(100))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_killed_process_left_goes_whatever_is_made_next_there(tmp_path: Path) -> None:
    for name in ("a" * 250, "bad.pte", "bad.pte"):
        killed_in_a_folder(tmp_path, name)
        assert len(os.listdir(tmp_path)) == 1  # it removed what the one before it left
    assert len(list(tmp_path.glob(".bad.pte.*.tmp/below/half.pte"))) == 1
    with replacing(tmp_path / "good.pte", 3) as out:
        os.write(out, b"new")
    assert os.listdir(tmp_path) == ["good.pte"]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = [".bad.pte.abc.tmp", "x.mmpack-abc.tmp", ".x.mmpack-abc.tmp.bak", ".mmpack-a.b.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / ".link.mmpack-abc.tmp").symlink_to(elsewhere)
    (tmp_path / ".file.mmpack-abc.tmp").touch()
    before = sorted(os.listdir(tmp_path))
    with scratch_folder(tmp_path, "x"):
        pass
    assert sorted(os.listdir(tmp_path)) == before and (elsewhere / "kept").exists()


def test_one_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    swept = []

    def late(fd: int, how: int) -> None:
        if not swept and not how & fcntl.LOCK_NB:  # the owner's; a sweeper does not wait
            swept.extend(os.listdir(tmp_path))
            sweep(tmp_path)
            assert not os.listdir(tmp_path)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch_folder(tmp_path, "x") as folder:
        assert len(swept) == 1 and [folder.name] == os.listdir(tmp_path) != swept
        sweep(tmp_path)
        assert folder.is_dir()


WORKER = """
import os, sys
from pathlib import Path
from mmpack.multimethod.scratch import replacing, scratch_folder
parent, me = Path(sys.argv[1]), sys.argv[2]
while not (parent / "stop").exists():
    with scratch_folder(parent, "x") as folder:
        (folder / "mine").write_text(me)
        with replacing(parent / "out", 8) as out:
            os.write(out, me.encode() * 8)
        assert (folder / "mine").read_text() == me
"""


def test_processes_that_come_go_and_are_killed_leave_each_other_alone(tmp_path: Path) -> None:
    rng = random.Random(0)

    def start(number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(number)])

    workers = [start(number) for number in range(4)]
    for number in range(4, 8):
        while not (tmp_path / "out").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.05, 0.2))
        workers[number - 4].kill()
        workers.append(start(number))
    time.sleep(0.5)
    (tmp_path / "stop").touch()
    ends = [worker.wait() for worker in workers]
    assert ends == [-signal.SIGKILL] * 4 + [0] * 4
    assert (tmp_path / "out").read_text() in {str(number) * 8 for number in range(8)}
    with scratch_folder(tmp_path, "x"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["out", "stop"]
