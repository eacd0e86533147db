"""Programs whose weights `link` puts into a `.ptd`: they compute what they did with these inside,
several share one file, and what is missing or damaged there is told."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from executorch.exir import to_edge
from executorch.exir._serialize._cord import Cord
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer
from executorch.runtime import Runtime
from torch import nn
from torch.export import export

from mmpack.multimethod.errors import FormatError, LinkError, OutputError
from mmpack.multimethod.link import PteFile, link, open_program, sizes
from mmpack.multimethod.link.data_file import DataFile
from mmpack.multimethod.link.data_write import Kept, write_data
from mmpack.multimethod.link.outside import open_whole
from mmpack.multimethod.link.write import Piece

from .conftest import Pte, Stock, same
from .large import large_program, link_in_child
from .programs import INPUTS, ROW, Mlp
from .test_external import apart
from .test_link import GROUPS, linked

MB = 1 << 20


class Outside(Stock):
    """A program and its data in ExecuTorch's own Python runtime."""

    def __init__(self, path: Path, data: Path) -> None:
        self.program = Runtime.get().load_program(path, data_path=data)
        self.names = self.program.method_names


@pytest.mark.parametrize("group", GROUPS)
def test_bit_for_bit(group: str, pte: Pte, tmp_path: Path) -> None:
    """Outside, and linked once more and inside again."""
    where = linked(GROUPS[group], pte, tmp_path / "x.pte", data="x.ptd")
    link([tmp_path / "x.pte"], tmp_path / "back.pte")
    program, back = Outside(tmp_path / "x.pte", tmp_path / "x.ptd"), Stock(tmp_path / "back.pte")
    for method, (name, old) in where.items():
        inputs = INPUTS[name][old]
        expected = Stock(pte(name)).run(old, inputs)
        assert same(program.run(method, inputs), expected), method
        assert same(back.run(method, inputs), expected), method


def test_what_goes_outside_and_what_stays(pte: Pte, tmp_path: Path) -> None:
    """Weights are in the one file, and in no other; a file that travels along, the manifest and the
    initial values of state stay."""
    files = {"note": b"a note that travels" * 9}
    report = link(
        [pte("mlp"), pte("xnnpack"), pte("counter")],
        tmp_path / "x.pte",
        rename={"mlp.pte:forward": "plain", "counter.pte:forward": "counter"},
        files=files,
        data="weights.ptd",
    )
    weight = Mlp().up.weight.detach().numpy().tobytes()
    program, data = (tmp_path / name for name in ("x.pte", "weights.ptd"))
    assert data.read_bytes().count(weight) == 1  # of two methods, which name it differently
    assert weight not in program.read_bytes() and files["note"] in program.read_bytes()
    assert report.data == (data, data.stat().st_size) and report.size == program.stat().st_size
    with open_whole(program) as file:
        record = report.manifest.data
        assert record is not None and record.file == "weights.ptd" and file.data is not None
        assert set(record.keys) == set(file.data.extents) == set(file.needs)
        assert not any(key.startswith("mmpack.") for key in file.data.extents)
        inside = link([program], tmp_path / "back.pte")
        # Of a linked file, without its files, of which the report tells too.
        assert (
            sizes(file).stored
            == report.stored - len(files["note"])
            == inside.stored - len(files["note"])
        )
    assert report.stored == inside.stored and report.given == inside.given + report.saved


def test_executorch_reads_it(pte: Pte, tmp_path: Path) -> None:
    linked(["mlp", "xnnpack"], pte, tmp_path / "x.pte", data="x.ptd")
    theirs = FlatTensorSerializer().deserialize(Cord((tmp_path / "x.ptd").read_bytes()))
    with DataFile.open(tmp_path / "x.ptd") as ours:
        assert set(theirs.named_data) == set(ours.extents)
        for key, entry in theirs.named_data.items():
            extent = ours.extents[key]
            assert not extent.offset % 128
            assert theirs.buffers[entry.buffer_index] == ours.read(extent.offset, extent.size)
            layout = ours.layouts.get(key)
            if entry.tensor_layout is None:
                assert layout is None
            else:
                assert layout is not None
                assert list(layout.sizes) == entry.tensor_layout.sizes
                assert list(layout.dim_order) == list(entry.tensor_layout.dim_order)
                assert layout.scalar_type == entry.tensor_layout.scalar_type


def test_executorch_s_own_is_read(tmp_path: Path) -> None:
    path = apart(tmp_path / "a")
    model = Mlp()
    with DataFile.open(path.with_name("weights.ptd")) as file:
        assert set(file.extents) == set(dict(model.named_parameters()))
        for name, weight in model.named_parameters():
            extent = file.extents[name]
            expected = weight.detach().numpy().tobytes()
            assert file.read(extent.offset, extent.size)[: len(expected)] == expected
            assert file.layouts[name].sizes == tuple(weight.shape)


def test_one_of_several_programs(pte: Pte, tmp_path: Path) -> None:
    """The second adds what is its own, the first still runs, and whoever adds nothing leaves the
    file as it is."""
    data = tmp_path / "w.ptd"
    linked(["mlp"], pte, tmp_path / "a.pte", data="w.ptd")
    small = data.stat().st_size
    where = linked(["xnnpack", "cat"], pte, tmp_path / "b.pte", data="w.ptd")
    large = data.stat()
    weights = sum(p.numel() * 4 for p in Mlp().parameters())
    assert small > weights and large.st_size < small + weights / 2  # most of it is there once
    expected = Stock(pte("mlp")).run("forward", ROW)
    assert same(Outside(tmp_path / "a.pte", data).run("mlp_forward", ROW), expected)
    for method, (name, old) in where.items():
        program = Outside(tmp_path / "b.pte", data)
        assert same(
            program.run(method, INPUTS[name][old]), Stock(pte(name)).run(old, INPUTS[name][old])
        )
    for name in ("a.pte", "b.pte"):
        link([tmp_path / name], tmp_path / "again.pte", data="w.ptd")
    assert data.stat().st_mtime_ns == large.st_mtime_ns and data.stat().st_ino == large.st_ino


def test_anew_it_has_nothing_else(pte: Pte, tmp_path: Path) -> None:
    linked(["cat"], pte, tmp_path / "x.pte", data="x.ptd")
    linked(["mlp"], pte, tmp_path / "x.pte", data="x.ptd", anew=True)
    again = (tmp_path / "x.ptd").read_bytes()
    linked(["mlp"], pte, tmp_path / "y.pte", data="y.ptd")
    assert again == (tmp_path / "y.ptd").read_bytes()


def test_other_data_under_a_key(pte: Pte, tmp_path: Path) -> None:
    linked(["xnnpack"], pte, tmp_path / "x.pte", data="x.ptd")
    before = damaged(tmp_path / "x.ptd")
    program = (tmp_path / "x.pte").read_bytes()
    with pytest.raises(LinkError, match=r"x\.ptd: has other data under the key '.*'; is it damag"):
        linked(["xnnpack", "mlp"], pte, tmp_path / "x.pte", data="x.ptd")
    assert (tmp_path / "x.ptd").read_bytes() == before
    assert (tmp_path / "x.pte").read_bytes() == program
    assert sorted(os.listdir(tmp_path)) == ["x.ptd", "x.pte"]


def damaged(path: Path) -> bytes:
    """Flips a bit of the last weight, and gives what then is there."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("there", [True, False])
def test_if_the_program_cannot_be_written_the_data_are_what_they_were(
    there: bool, pte: Pte, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        linked(["mlp"], pte, tmp_path / "x.pte", data="x.ptd")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "x.pte":
            assert (tmp_path / "x.ptd").read_bytes() != before.get("x.ptd")  # it went first
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match=r"x\.pte: cannot be written"):
        linked(["cat"], pte, tmp_path / "x.pte", data="x.ptd", anew=True)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_data_that_cannot_be_written(pte: Pte, tmp_path: Path) -> None:
    (tmp_path / "x.ptd").mkdir()
    with pytest.raises(OutputError, match=r"x\.ptd: is a folder"):
        linked(["mlp"], pte, tmp_path / "x.pte", data="x.ptd")
    for name in ("x.pt", "a/x.ptd", ".ptd", ""):
        with pytest.raises(LinkError, match="expected a plain name that ends in"):
            linked(["mlp"], pte, tmp_path / "x.pte", data=name)
    with pytest.raises(LinkError, match="cannot be one file"):
        linked(["mlp"], pte, tmp_path / "y.ptd", data="y.ptd")
    assert os.listdir(tmp_path) == ["x.ptd"]


def test_an_input_s_data_are_missing(pte: Pte, tmp_path: Path) -> None:
    linked(["mlp"], pte, tmp_path / "x.pte", data="w.ptd")
    (tmp_path / "w.ptd").unlink()
    with pytest.raises(FormatError, match=r"its weights \(as '.*'\) are in w\.ptd, which is not"):
        link([tmp_path / "x.pte"], tmp_path / "y.pte")


def test_one_that_executorch_made_keeps_its_own(pte: Pte, tmp_path: Path) -> None:
    path = apart(tmp_path / "a")
    with pytest.raises(LinkError, match=r"takes '.*' from a \.ptd file that mmpack did not make"):
        link([path, pte("xnnpack")], tmp_path / "x.pte", data="x.ptd")


def test_beside_what_a_link_leads_to(pte: Pte, tmp_path: Path) -> None:
    linked(["mlp"], pte, tmp_path / "x.pte", data="w.ptd")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "y.pte").symlink_to(tmp_path / "x.pte")
    with open_whole(tmp_path / "other" / "y.pte") as file:
        assert file.data is not None and file.data.path == tmp_path / "w.ptd"


def test_nothing_to_put_there(tmp_path: Path) -> None:
    plain = to_edge(export(nn.ReLU(), ROW)).to_executorch()
    (tmp_path / "plain.pte").write_bytes(bytes(plain.buffer))
    report = link([tmp_path / "plain.pte"], tmp_path / "x.pte", data="w.ptd")
    assert report.data is None and report.manifest.data is None
    assert sorted(os.listdir(tmp_path)) == ["plain.pte", "x.pte"]


@pytest.mark.parametrize("end", [0, 5, 47, 100, -1])
def test_cut(end: int, pte: Pte, tmp_path: Path) -> None:
    linked(["mlp"], pte, tmp_path / "x.pte", data="w.ptd")
    whole = (tmp_path / "w.ptd").read_bytes()
    (tmp_path / "w.ptd").write_bytes(whole[:end])
    with pytest.raises(FormatError, match=r"w\.ptd: .*truncated"):
        open_whole(tmp_path / "x.pte")


def test_a_damaged_weight(pte: Pte, tmp_path: Path) -> None:
    linked(["mlp"], pte, tmp_path / "x.pte", data="w.ptd")
    damaged(tmp_path / "w.ptd")
    with pytest.raises(FormatError, match=r"w\.ptd: is damaged, or not the one .* CRC-32"):
        open_whole(tmp_path / "x.pte")


def test_every_byte_of_the_tables(pte: Pte, tmp_path: Path) -> None:
    """Whatever is damaged there is told, or does not matter: then ExecuTorch computes the same."""
    linked(["mlp"], pte, tmp_path / "x.pte", data="w.ptd")
    whole = (tmp_path / "w.ptd").read_bytes()
    with DataFile.open(tmp_path / "w.ptd") as file:
        tables = min(extent.offset for extent in file.extents.values())
    expected, harmless = Stock(pte("mlp")).run("forward", ROW), 0
    for at in range(tables):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        (tmp_path / "w.ptd").write_bytes(changed)
        try:
            open_whole(tmp_path / "x.pte").close()
        except FormatError as error:
            assert str(tmp_path / "w.ptd") in str(error), at
            continue
        harmless += 1
        got = Outside(tmp_path / "x.pte", tmp_path / "w.ptd").run("mlp_forward", ROW)
        assert same(got, expected), at
    assert harmless < tables / 2


def test_written_twice_it_is_the_same(tmp_path: Path) -> None:
    kept = {"b": Kept(Piece(b"1" * 200)), "a": Kept(Piece(b"2" * 3)), "c": Kept(Piece(b"2" * 3))}
    size = write_data(tmp_path / "one.ptd", kept)
    write_data(tmp_path / "two.ptd", kept)
    assert (tmp_path / "one.ptd").read_bytes() == (tmp_path / "two.ptd").read_bytes()
    with DataFile.open(tmp_path / "one.ptd") as file:
        assert file.size == size and list(file.extents) == ["b", "a", "c"]
        assert file.extents["a"] == file.extents["c"] != file.extents["b"]


def test_peak_memory(pte: Pte, tmp_path: Path) -> None:
    """Weights are streamed, both where they go outside and where a file of others is extended."""
    source = large_program(tmp_path / "large.pte", 256 * MB)
    other = large_program(tmp_path / "other.pte", 8 * MB, method="more")
    assert link_in_child(tmp_path / "x.pte", source, data="w.ptd").memory < 16 * MB
    assert (tmp_path / "x.pte").stat().st_size < MB < 250 * MB < (tmp_path / "w.ptd").stat().st_size
    assert link_in_child(tmp_path / "y.pte", other, data="w.ptd").memory < 16 * MB
    assert link_in_child(tmp_path / "z.pte", tmp_path / "x.pte").memory < 16 * MB
    with open_program(tmp_path / "z.pte") as file, PteFile.open(source) as first:
        assert file.methods == first.methods and file.size > source.stat().st_size * 0.99


def test_several_at_once(tmp_path: Path) -> None:
    """Processes that extend one file wait for each other: what one has put there stays."""
    names = [f"p{number}" for number in range(4)]
    sources = [large_program(tmp_path / f"{n}.pte", 4 * MB, method=n) for n in names]
    outputs = [tmp_path / f"{n}.out.pte" for n in names]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda o, s: link_in_child(o, s, data="w.ptd"), outputs, sources))
    for output in outputs:
        open_whole(output).close()
    assert (tmp_path / "w.ptd").stat().st_size > 15 * MB
