"""Linking streams: it never holds the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpack.multimethod.link import link, open_program

from .conftest import Pte
from .large import large_program, link_in_child

MB = 1 << 20


@pytest.mark.parametrize("size", [256 * MB, pytest.param(1024 * MB, marks=pytest.mark.slow)])
def test_peak_memory(size: int, pte: Pte, tmp_path: Path) -> None:
    source = large_program(tmp_path / "large.pte", size)
    took = link_in_child(tmp_path / "x.pte", source, pte("mlp"))
    assert took.memory < 16 * MB  # a sixteenth of the smaller one
    with open_program(tmp_path / "x.pte") as file:
        assert file.methods == ("weights", "forward")
        assert file.size > source.stat().st_size


def test_the_same_weights_in_two_files(tmp_path: Path) -> None:
    one = large_program(tmp_path / "one.pte", 32 * MB)
    two = tmp_path / "two.pte"
    two.write_bytes(one.read_bytes())
    report = link([one, two], tmp_path / "x.pte", rename={"two.pte:weights": "other"})
    assert report.saved == report.stored == report.given // 2
    assert report.size < one.stat().st_size * 1.01
