"""Programs as files, and the stock runtime that is the oracle of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from .programs import case

Pte = Callable[[str], Path]


@pytest.fixture(scope="session")
def pte(tmp_path_factory: pytest.TempPathFactory) -> Pte:
    """The path of a program of `programs.py`, which is made at its first use."""
    folder = tmp_path_factory.mktemp("programs")

    def path(name: str) -> Path:
        file = folder / f"{name}.pte"
        if not file.exists():
            file.write_bytes(case(name))
        return file

    return path


class Stock:
    """A program in ExecuTorch's own Python runtime."""

    def __init__(self, path: Path) -> None:
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(path)
        self.names = self.program.method_names

    def run(self, method: str, inputs: Sequence[Any] = ()) -> list[Any]:
        loaded = self.program.load_method(method)
        assert loaded is not None
        return list(loaded.execute(list(inputs)))


@pytest.fixture
def stock() -> Callable[[Path], Stock]:
    return Stock


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Bit for bit."""
    if len(one) != len(other):
        return False
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b and type(a) is type(b)
        for a, b in zip(one, other, strict=True)
    )
