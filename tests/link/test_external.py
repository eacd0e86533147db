"""Programs whose weights are in another file (`.ptd`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.runtime import Runtime
from torch.export import export

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link import PteFile, link
from mmpack.multimethod.link.schema import NamedData
from mmpack.multimethod.link.write import Piece, Segment, write_pte

from .conftest import Pte
from .programs import ROW, Mlp


def apart(folder: Path, *, width: int = 32) -> Path:
    """An Mlp's program; its weights lie beside it, in `weights.ptd`."""
    folder.mkdir()
    args = (torch.ones(2, width),)
    edge = to_edge(export(Mlp(width=width).eval(), args))
    made = edge.to_executorch(ExecutorchBackendConfig(external_constants=lambda node: "weights"))
    (folder / "apart.pte").write_bytes(bytes(made.buffer))
    made.write_tensor_data_to_file(str(folder))
    return folder / "apart.pte"


def test_they_stay_there(pte: Pte, tmp_path: Path) -> None:
    """Also if two programs take the same ones."""
    path, copy = apart(tmp_path / "a"), tmp_path / "copy.pte"
    copy.write_bytes(path.read_bytes())
    rename = {"mlp.pte:forward": "inside", "copy.pte:forward": "again"}
    link([path, pte("mlp"), copy], tmp_path / "x.pte", rename=rename)
    program = Runtime.get().load_program(
        tmp_path / "x.pte", data_path=path.with_name("weights.ptd")
    )
    with torch.no_grad():
        expected = Mlp()(*ROW)
    for name in ("forward", "inside", "again"):
        method = program.load_method(name)
        assert method is not None
        torch.testing.assert_close(method.execute(list(ROW))[0], expected)


def test_one_name_of_two_shapes(tmp_path: Path) -> None:
    one, two = apart(tmp_path / "a"), apart(tmp_path / "b", width=16)
    with pytest.raises(LinkError, match=r"both take '.*' from a \.ptd file, but not with one dty"):
        link([one, two], tmp_path / "x.pte", rename={"b/apart.pte:forward": "other"})


def with_named_data(path: Path, output: Path, key: str, *, sealed: bool = False) -> Path:
    with PteFile.open(path) as file:
        file.program.named_data = [NamedData(key, len(file.segments))]
        segments = [Segment.of(Piece((file, extent))) for extent in file.segments]
        write_pte(output, file.program, [*segments, Segment.of(b"data")], sealed=sealed)
    return output


def test_one_name_inside_and_outside(pte: Pte, tmp_path: Path) -> None:
    path = apart(tmp_path / "a")
    other = with_named_data(pte("mlp"), tmp_path / "other.pte", "up.weight")
    with pytest.raises(LinkError, match=r"takes 'up\.weight' from a \.ptd file, and .*other\.pte"):
        link([path, other], tmp_path / "x.pte", rename={"other.pte:forward": "other"})


def test_named_data_that_only_a_newer_mmpack_knows(pte: Pte, tmp_path: Path) -> None:
    other = with_named_data(pte("mlp"), tmp_path / "other.pte", "mmpack.news", sealed=True)
    with pytest.raises(LinkError, match=r"has 'mmpack\.news', which only a newer mmpack can"):
        link([other], tmp_path / "x.pte")
