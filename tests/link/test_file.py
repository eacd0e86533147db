"""Opening and writing files: what is said about those that cannot be, and what is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpack.multimethod.errors import FormatError, OutputError
from mmpack.multimethod.link import check_integrity, link, open_program

from .conftest import Pte

WRONG = {
    "is empty": b"",
    "looks like a zip archive: an exported program (.pt2) or a checkpoint?; an ExecuTorch program "
    "has 'ET12' at byte 4": b"PK\x03\x04" + bytes(60),
    "looks like ExecuTorch tensor data (.ptd), not a program; an ExecuTorch program has 'ET12' at "
    "byte 4": bytes(4) + b"FT01" + bytes(60),
    "looks like an ExecuTorch bundled program (.bpte): take the .pte inside; an ExecuTorch program "
    "has 'ET12' at byte 4": bytes(4) + b"BP08" + bytes(60),
    "looks like safetensors; an ExecuTorch program has 'ET12' at byte 4": (
        (20).to_bytes(8, "little") + b'{"a":1}' + bytes(60)
    ),
    "looks like a Git LFS pointer: run `git lfs pull`; an ExecuTorch program has 'ET12' at byte "
    "4": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "is an ExecuTorch program of schema ET11, mmpack reads ET12": bytes(4) + b"ET11" + bytes(60),
    "is not an ExecuTorch program: an ExecuTorch program has 'ET12' at byte 4, this has b'o wo'": (
        b"hello world"
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_program(message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    path.write_bytes(WRONG[message])
    with pytest.raises(FormatError) as error:
        open_program(path)
    assert str(error.value) == f"{path}: {message}"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a\.pte: cannot be opened: No such file or directory"):
        open_program(tmp_path / "a.pte")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"is a folder, expected a \.pte file"):
        open_program(tmp_path)


@pytest.mark.parametrize("cut", [1, 100, 15000, 18000, 18930])
def test_truncated(cut: int, pte: Pte, tmp_path: Path) -> None:
    data = pte("mlp").read_bytes()
    path = tmp_path / "x.pte"
    path.write_bytes(data[: len(data) - cut])
    with pytest.raises(FormatError) as error:
        open_program(path)
    if len(data) - cut >= 64:
        assert str(error.value) == (
            f"{path}: is truncated: it should have {len(data)} bytes and has {len(data) - cut}"
        )


def test_every_flipped_bit_of_a_linked_file_is_found(pte: Pte, tmp_path: Path) -> None:
    path, damaged = tmp_path / "x.pte", tmp_path / "y.pte"
    link([pte("mlp")], path)
    data = path.read_bytes()
    with open_program(path) as file:
        assert check_integrity(file)
    for at in (*range(0, len(data), 37), *range(len(data) - 20, len(data))):
        wrong = bytearray(data)
        wrong[at] ^= 1 << (at % 8)
        damaged.write_bytes(wrong)
        with pytest.raises(FormatError):
            open_program(damaged)
    damaged.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match="its checksum is not where it should be"):
        open_program(damaged)


def test_foreign_files_have_no_checksum(pte: Pte) -> None:
    with open_program(pte("mlp")) as file:
        assert not check_integrity(file)


def test_full_disk(pte: Pte, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.pte"
    output.write_text("the old one")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError) as error:
        link([pte("mlp")], output)
    monkeypatch.undo()
    assert f"{output}: cannot be written: no space left: " in str(error.value)
    assert " bytes are needed and " in str(error.value)
    assert output.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["out.pte"]


def test_no_such_folder(pte: Pte, tmp_path: Path) -> None:
    output = tmp_path / "no" / "out.pte"
    with pytest.raises(OutputError) as error:
        link([pte("mlp")], output)
    assert str(error.value) == (
        f"{output}: cannot be written: folder {output.parent} does not exist"
    )


def test_output_is_a_folder(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no regular file"):
        link([pte("mlp")], tmp_path)
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_output_may_not_be_an_input(pte: Pte, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    path.write_bytes(pte("mlp").read_bytes())
    with pytest.raises(OutputError, match="is an input of this command"):
        link([path], path, constants={"one": 1})
    assert path.read_bytes() == pte("mlp").read_bytes()


def test_output_may_be_a_link(pte: Pte, tmp_path: Path) -> None:
    (tmp_path / "real.pte").write_text("old")
    (tmp_path / "x.pte").symlink_to("real.pte")
    link([pte("mlp")], tmp_path / "x.pte")
    assert (tmp_path / "x.pte").is_symlink()
    open_program(tmp_path / "real.pte").close()


KILLED = """
import sys
from mmpack.multimethod.link import link
while True:
    link([sys.argv[1], sys.argv[2]], sys.argv[3], rename={"twice.pte:twice": "other"})
"""


def test_kill_at_any_time(pte: Pte, tmp_path: Path) -> None:
    output = tmp_path / "out.pte"
    for delay in (0.0, 0.003, 0.01, 0.02, 0.03):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(pte("mlp")), str(pte("twice")), str(output)]
        ) as writer:
            while not output.exists():
                time.sleep(0.001)
            time.sleep(delay)
            writer.kill()
        with open_program(output) as file:
            assert file.methods == ("forward", "other")
    link([pte("mlp")], output)
    assert os.listdir(tmp_path) == ["out.pte"]


def test_only_light_modules_are_imported() -> None:
    heavy = "torch", "executorch", "numpy"
    code = f"import sys, mmpack.multimethod.link; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
