"""Damaged XNNPACK delegates of foreign programs: refused, or the stock runtime survives them.

As in `test_mutations.py`; here only the delegates' headers and graphs are hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import open_program

from .mutate import crashes
from .mutate_xnnpack import Delegates
from .xnnpack_zoo import QUICK, ZOO, exported


def check(names: Sequence[str], seeds: int, folder: Path) -> None:
    """Damages each program `seeds` times, and runs what is accepted in a child process."""
    torch.save({name: ZOO[name].args for name in names}, folder / "inputs.pt")
    accepted = []
    for name in names:
        original = folder / f"{name}.pte"
        original.write_bytes(exported(name))
        delegates = Delegates(original)
        for seed in range(seeds):
            path = folder / f"{name} {seed}.pte"
            delegates.damaged(path, seed)
            try:
                open_program(path).close()
            except FormatError as error:
                assert str(error).startswith(str(path))
                path.unlink()
            else:
                accepted.append(path)
    assert len(accepted) < len(names) * seeds / 2
    found = crashes(accepted, folder / "inputs.pt")
    told = "\n".join(f"{c.path}: signal {c.signal}: {c.log[-600:]}" for c in found)
    assert not found, told


def test_damaged(tmp_path: Path) -> None:
    check(QUICK, 120, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_damaged_more(name: str, tmp_path: Path) -> None:
    check([name], 650, tmp_path)
