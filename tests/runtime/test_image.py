"""A loaded program is what was checked, whatever becomes of its file."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import runpy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import ExecutionError, FormatError, load
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.runtime import image, methods
from mmpack.multimethod.runtime.image import Image

ONE = torch.ones(2)


@pytest.fixture
def path(toy: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "p.pte"
    shutil.copy(toy, copy)
    return copy


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, other: Path) -> None:
    os.truncate(path, 100)


def fill(path: Path, other: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


def copy_over(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def delete(path: Path, other: Path) -> None:
    path.unlink()


def replace(path: Path, other: Path) -> None:
    shutil.copy(other, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def use(program: Program) -> None:
    """All of a fresh `toy`: methods that are loaded only now, shared state, state put back."""
    for _ in range(2):
        assert program.run_method("add", ONE).total.tolist() == [8.0, 0.0]
        product = program.run_method("matmul", torch.ones(3, 4), torch.ones(4, 5)).product
        assert torch.equal(product, torch.full((3, 5), 4.0))
        assert program.run_method("scaled", ONE).product.tolist() == [8.0, 0.0]
        program.reset()


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("change", [empty, cut, fill, copy_over, delete, replace])
def test_a_loaded_program_does_not_care_what_becomes_of_its_file(
    path: Path, foreign: Path, change: Callable[[Path, Path], None], on_disk: bool
) -> None:
    fresh, used = (Program.load(path, on_disk=on_disk) for _ in range(2))
    use(used)
    change(path, foreign)
    use(fresh)
    use(used)


@pytest.mark.parametrize("change", [delete, replace])
def test_a_mapped_file_may_be_deleted_and_replaced(
    path: Path, foreign: Path, change: Callable[[Path, Path], None]
) -> None:
    program = load(path, mmap=True)
    change(path, foreign)
    use(program)


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_run_is_what_was_checked_also_if_the_file_was_replaced_in_between(
    path: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool
) -> None:
    real = methods.read_facts

    def replaced(*args: Any) -> Any:
        replace(path, foreign)
        return real(*args)

    monkeypatch.setattr(methods, "read_facts", replaced)
    use(load(path, mmap=mmap))


def test_nobody_can_write_to_the_copy(path: Path) -> None:
    made = Image(path)
    assert made.path.read_bytes() == path.read_bytes()
    for attempt in (
        lambda: os.pwrite(made.fd, b"x", 0),
        lambda: os.truncate(made.fd, 0),
        lambda: made.path.write_bytes(b""),
    ):
        with pytest.raises(OSError):
            attempt()
    assert made.path.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("mmap", [False, True])
def test_a_program_that_is_gone_keeps_nothing_open(path: Path, mmap: bool) -> None:
    def open_now() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_now()
    program = load(path, mmap=mmap)
    use(program)
    assert open_now() > before
    del program
    assert open_now() == before
    path.write_bytes(b"no program")
    with pytest.raises(FormatError):
        load(path, mmap=mmap)
    assert open_now() == before


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_no_file_is_said(tmp_path: Path, mmap: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FormatError, match=r"pipe: is no regular file, expected a \.pte file"):
        load(pipe, mmap=mmap)
    with pytest.raises(FormatError, match=r": is a folder, expected a \.pte file"):
        load(tmp_path, mmap=mmap)
    with pytest.raises(FormatError, match="cannot be opened: No such file or directory"):
        load(tmp_path / "none.pte", mmap=mmap)


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("write", errno.EFBIG, ExecutionError),
        ("write", errno.ENOSPC, ExecutionError),
        ("write", errno.ENOMEM, ExecutionError),
        ("memfd_create", errno.EMFILE, ExecutionError),
        ("preadv", errno.EIO, FormatError),
    ],
)
def test_a_copy_that_cannot_be_made_is_said_with_what_does_without(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    kind: type[Exception],
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch, pytest.raises(kind) as raised:
        patch.setattr(os, call, full)
        load(path)
    assert str(raised.value) == (
        f"{path}: cannot be read into memory: {os.strerror(number)}; with `mmap=True`, `load` maps "
        "the file instead"
    )
    assert len(os.listdir("/proc/self/fd")) == before
    use(load(path, mmap=True))


def test_a_copy_on_disk_has_no_name_and_takes_no_memory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delattr(os, "memfd_create")
    copy = Image(path, on_disk=True)
    assert copy.path.read_bytes() == path.read_bytes()
    assert os.fstat(copy.fd).st_nlink == 0
    assert os.fstat(copy.fd).st_dev == temporary.stat().st_dev
    assert list(temporary.iterdir()) == []


def test_a_disk_without_room_for_the_copy_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch, pytest.raises(ExecutionError) as raised:
        patch.setattr(os, "write", full)
        Image(path, on_disk=True)
    assert str(raised.value) == (
        f"{path}: cannot be copied to the folder for temporary files: No space left on device; "
        "TMPDIR may name another folder"
    )
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (os, ["memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING"]),
        (fcntl, ["F_ADD_SEALS", "F_SEAL_WRITE", "F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_SEAL"]),
    ],
    ids=["memfd", "seals"],
)
def test_a_python_that_knows_no_sealed_memory_runs_a_copy_without_a_name(
    path: Path,
    foreign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    names: list[str],
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name in names:
        monkeypatch.delattr(module, name)
    runpy.run_path(str(image.__file__))  # such a Python can import it
    gc.collect()
    before, data = len(os.listdir("/proc/self/fd")), path.read_bytes()
    copy, program = Image(path), load(path)
    copy_over(path, foreign)
    assert copy.path.read_bytes() == data
    assert os.fstat(copy.fd).st_nlink == 0
    assert os.fstat(copy.fd).st_dev == temporary.stat().st_dev
    assert list(temporary.iterdir()) == []
    use(program)
    del copy, program
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
