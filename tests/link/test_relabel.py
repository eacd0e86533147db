"""Another manifest, in place: the oracle is linking the same inputs with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpack.multimethod.link import Manifest, link, open_program, read_manifest
from mmpack.multimethod.link.canonical import write_canonical
from mmpack.multimethod.link.relabel import relabel

from .conftest import Pte
from .test_link import GROUPS, OpenStock, linked


def manifest(said: str) -> Manifest:
    return Manifest(mmpack="1", methods={}, provenance={"said": said})


@pytest.mark.parametrize("said", ["", "as long as that", "much longer than what was there" * 30])
def test_it_is_as_if_linked_with_it(said: str, pte: Pte, tmp_path: Path) -> None:
    path, expected = tmp_path / "x.pte", tmp_path / "y.pte"
    linked(GROUPS["all kinds"], pte, path, manifest=manifest("as long as this"))
    linked(GROUPS["all kinds"], pte, expected, manifest=manifest(said))
    with open_program(path) as file:
        old = read_manifest(file)
    with open_program(expected) as file:
        new = read_manifest(file)
    assert old != new or said == "as long as this"
    assert new is not None
    assert relabel(path, new) == expected.stat().st_size
    assert path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["mlp", "xnnpack_twice", "counter", "branch"])
def test_the_canonical_layout_is_reached_at_once(
    name: str, pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    once, twice = tmp_path / "once.pte", tmp_path / "twice.pte"
    assert write_canonical(pte(name), once) and write_canonical(once, twice)
    assert once.read_bytes() == twice.read_bytes()
    one, other = tmp_path / "one.pte", tmp_path / "other.pte"
    link([pte(name)], one)
    link([once], other)
    left, right = stock(one), stock(other)
    assert left.names == right.names
