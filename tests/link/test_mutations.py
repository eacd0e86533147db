"""Damaged files: either we refuse them, or the stock runtime survives them.

What we accept is loaded and executed by ExecuTorch in a child process; a signal that kills it
fails the test. Programs with our checksum are all refused. Without it (foreign files) the rest
of the checks must do; the file's bytes are hit where they mean something: the flatbuffer.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mmpack.multimethod.errors import FormatError, MmpackError
from mmpack.multimethod.link import link, open_program, read_manifest
from mmpack.multimethod.report.inspection import inspect
from mmpack.multimethod.runtime.contexts import read_contexts
from mmpack.multimethod.runtime.facts import read_facts

from .conftest import Pte
from .mutate import crashes, mutated
from .programs import INPUTS, ROW

SEEDS = 1000


def read(path: Path, *, integrity: bool) -> None:
    """All that `load` reads of a file before the runtime gets it; raises FormatError at most.

    What passes must be shown by `inspect`, too, or refused by it with an error of ours.
    """
    with open_program(path, integrity=integrity) as file:
        read_facts(file, read_manifest(file))
        read_contexts(file)
    with suppress(MmpackError):
        seen = inspect(path)
        assert str(seen)
        assert seen.as_dict()["methods"].keys() == seen.methods.keys()


def survivors(
    data: bytes, limit: int, folder: Path, *, integrity: bool, seeds: int = SEEDS
) -> list[Path]:
    """Damages the first `limit` bytes `seeds` times; the files that we accept."""
    accepted = []
    for seed in range(seeds):
        how, damaged = mutated(data, seed, limit=limit)
        path = folder / f"{seed} {how}.pte"
        path.write_bytes(damaged)
        try:
            read(path, integrity=integrity)
        except FormatError as error:
            assert str(error).startswith(str(path))
            path.unlink()
        else:
            accepted.append(path)
    return accepted


def check(accepted: list[Path], calls: object, folder: Path) -> None:
    torch.save(calls, folder / "inputs.pt")
    found = crashes(accepted, folder / "inputs.pt")
    told = "\n".join(f"{c.path}: signal {c.signal}: {c.log[-600:]}" for c in found)
    assert not found, told


def program_size(path: Path) -> int:
    with open_program(path) as file:
        return file.program_size


@pytest.mark.parametrize("name", ["cat", "mlp"])
def test_foreign(name: str, pte: Pte, tmp_path: Path) -> None:
    accepted = survivors(pte(name).read_bytes(), program_size(pte(name)), tmp_path, integrity=True)
    assert len(accepted) < SEEDS / 2
    check(accepted, INPUTS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["branch", "put", "counter", "dynamic", "constants", "twice"])
def test_foreign_more(name: str, pte: Pte, tmp_path: Path) -> None:
    accepted = survivors(
        pte(name).read_bytes(), program_size(pte(name)), tmp_path, integrity=True, seeds=4000
    )
    check(accepted, INPUTS[name], tmp_path)


def test_linked_programs_are_all_refused(pte: Pte, tmp_path: Path) -> None:
    output = tmp_path / "x.pte"
    link([pte("mlp"), pte("xnnpack_twice"), pte("put")], output)
    data = output.read_bytes()
    accepted = survivors(data, len(data), tmp_path, integrity=True)
    # A mutation may happen to write what was there.
    assert all(path.read_bytes() == data for path in accepted)


def test_linked_without_checksum(pte: Pte, tmp_path: Path) -> None:
    """As if the file were foreign."""
    output = tmp_path / "x.pte"
    link([pte("cat"), pte("put"), pte("xnnpack_twice")], output)
    accepted = survivors(output.read_bytes(), program_size(output), tmp_path, integrity=False)
    check(accepted, {**INPUTS["cat"], **INPUTS["put"], "again": ROW}, tmp_path)
