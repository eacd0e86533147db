"""Blobs: equal ones are one, and those that differ in a single byte, wherever it is, are two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import nn

from mmpack.multimethod import load
from mmpack.multimethod.link import blobs, link
from mmpack.multimethod.link.blobs import SAMPLE, Blobs, crc_of
from mmpack.multimethod.link.file import Extent, OpenFile, open_regular
from mmpack.multimethod.link.write import Piece

SIZES = (0, 1, SAMPLE - 1, SAMPLE, SAMPLE + 1, 3 * SAMPLE + 1, 100_000)


class Raw(OpenFile):
    """Any file."""

    def __init__(self, path: Path) -> None:
        self.path, self._fd = path, open_regular(path)


def content(size: int) -> bytes:
    generator = torch.Generator().manual_seed(size)
    return bytes(torch.randint(256, (size,), generator=generator).tolist())


def unlike(size: int) -> Iterator[bytes]:
    """Each with one byte that is not that of `content`, at places of every kind."""
    for at in {0, 1, SAMPLE - 1, SAMPLE, SAMPLE + 1, size // 2, size - SAMPLE - 1, size - 1}:
        if 0 <= at < size:
            made = bytearray(content(size))
            made[at] ^= 1
            yield bytes(made)


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_is_known_again_wherever_its_bytes_are(size: int, tmp_path: Path) -> None:
    whole = content(size)
    path = tmp_path / "file"
    path.write_bytes(b"before" + whole + b"after")
    made = Blobs()
    number = made.add(Piece(whole))
    assert made.add(Piece((Raw(path), Extent(6, size)))) == number
    assert made.add(Piece(bytes(whole))) == number
    assert made.crc(number) == crc_of(Piece(whole))


@pytest.mark.parametrize("size", SIZES)
def test_one_byte_makes_another_blob(size: int) -> None:
    made = Blobs()
    different = [content(size), *unlike(size)]
    numbers = [made.add(Piece(each)) for each in different]
    assert numbers == list(range(len(different)))
    assert [made.add(Piece(each)) for each in different] == numbers
    assert [bytes(b"".join(piece.chunks())) for piece in made.pieces] == different


def test_blobs_that_look_alike_are_not_all_read_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    whole = blobs.same_bytes

    def counted(one: Piece, other: Piece) -> bool:
        compared.append(one)
        return whole(one, other)

    monkeypatch.setattr(blobs, "same_bytes", counted)
    made = Blobs()
    for number in range(50):
        each = bytearray(3 * SAMPLE + 100)
        each[SAMPLE + 20] = number
        assert made.add(Piece(bytes(each))) == number
    assert len(compared) == 1  # the second with the first


class Scaled(nn.Module):
    """`weight` is a constant, or, where a delegate takes the layer, named data."""

    def __init__(self, at: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(128, 128)
        with torch.no_grad():
            self.layer.weight.view(-1)[at] += 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("data", [None, "weights.ptd"], ids=["inside", "beside"])
@pytest.mark.parametrize("delegated", [False, True], ids=["constants", "named"])
def test_weights_that_differ_where_no_sample_is_taken_stay_two(
    tmp_path: Path, delegated: bool, data: str | None
) -> None:
    x = torch.randn(1, 128)
    modules = {f"at_{at}": Scaled(at).eval() for at in (SAMPLE // 4 + 1, SAMPLE // 4 + 2, 3 * 4096)}
    for name, module in modules.items():
        edge = to_edge_transform_and_lower(
            {name: torch.export.export(module, (x,))},
            partitioner=[XnnpackPartitioner()] if delegated else None,
        )
        (tmp_path / f"{name}.pte").write_bytes(edge.to_executorch().buffer)
    output = tmp_path / "all.pte"
    link([tmp_path / f"{name}.pte" for name in modules], output, data=data)
    program = load(output, engine="stock")
    for name, module in modules.items():
        (got,) = program.run_method(name, x)
        torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-4)
