"""Files inside a program: any runtime ignores them, ours gives them back, a link unites them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from attrs import evolve
from executorch.exir._serialize._program import deserialize_pte_binary

from mmpack.multimethod import inspect, load
from mmpack.multimethod.errors import FormatError, LinkError
from mmpack.multimethod.link import PteFile, link, open_program, read_manifest
from mmpack.multimethod.link.files import FILE_PREFIX
from mmpack.multimethod.link.integrity import INTEGRITY_KEY
from mmpack.multimethod.link.manifest import MANIFEST_KEY, manifest_bytes
from mmpack.multimethod.link.schema import NamedData
from mmpack.multimethod.link.write import Piece, Segment, write_pte

from .conftest import Pte, Stock, same
from .programs import INPUTS

FILES = {"tokenizer.json": b'{"model": "\xc3\xa9"}' * 5000, "empty": b"", "é b": b"x"}


@pytest.fixture
def path(pte: Pte, tmp_path: Path) -> Path:
    link([pte("xnnpack")], tmp_path / "a.pte", files=FILES)
    return tmp_path / "a.pte"


def test_the_stock_runtime_does_not_mind_them(
    path: Path, pte: Pte, stock: Callable[[Path], Stock]
) -> None:
    with_files, without = stock(path), stock(pte("xnnpack"))
    for method in without.names:
        inputs = INPUTS["xnnpack"][method]
        assert same(with_files.run(method, inputs), without.run(method, inputs))


def test_executorchs_own_reader_finds_them(path: Path) -> None:
    named = deserialize_pte_binary(path.read_bytes()).named_data
    assert named is not None
    entries = {key: named.buffers[entry.buffer_index] for key, entry in named.pte_data.items()}
    for name, content in FILES.items():
        assert entries[f"mmpack.file.{name}"] == content


def test_ours_gives_them_back(path: Path) -> None:
    files = load(path).files  # the program is gone, its files are not
    assert dict(files) == FILES
    assert list(files) == sorted(FILES) and len(files) == 3 and "empty" in files
    assert "'tokenizer.json': 75000 bytes" in repr(files)
    with pytest.raises(KeyError, match=r"no file 'tokeniser\.json'; did you mean 'tokenizer\.js"):
        files["tokeniser.json"]
    path.unlink()
    assert files["tokenizer.json"] == FILES["tokenizer.json"]


def test_a_mapped_program_that_is_truncated_says_so(path: Path) -> None:
    files = load(path, mmap=True).files
    content = path.read_bytes()
    assert files["tokenizer.json"] == FILES["tokenizer.json"]
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"a\.pte: has been truncated since it was loaded"):
        files["tokenizer.json"]


def test_a_program_without_them_has_none(pte: Pte, tmp_path: Path) -> None:
    assert dict(load(pte("xnnpack")).files) == {}
    link([pte("xnnpack")], tmp_path / "b.pte")
    assert dict(load(tmp_path / "b.pte").files) == inspect(tmp_path / "b.pte").files == {}


def test_sizes_are_told_apart(path: Path, pte: Pte, tmp_path: Path) -> None:
    plain = link([pte("xnnpack")], tmp_path / "b.pte")
    report = link([pte("xnnpack")], path, files=FILES)
    sizes = {name: len(content) for name, content in FILES.items()}
    assert report.manifest.files == sizes
    assert report.methods == plain.methods and report.saved == plain.saved
    assert report.given - plain.given == report.stored - plain.stored == sum(sizes.values())
    assert report.size - plain.size >= sum(sizes.values())
    with_files, without = inspect(path), inspect(tmp_path / "b.pte")
    assert with_files.files == sizes
    assert with_files.as_dict()["files"] == sizes
    assert with_files.named.keys() == without.named.keys()
    assert with_files.shared == without.shared
    told = str(with_files).splitlines()
    at = told.index("files")
    assert sorted(told[at + 1 : at + 4]) == [
        "  empty: 0 B",
        "  tokenizer.json: 75.0 kB",
        "  é b: 1 B",
    ]


def test_equal_ones_are_united(path: Path, pte: Pte, tmp_path: Path) -> None:
    other, both = tmp_path / "b.pte", tmp_path / "c.pte"
    link([pte("mlp")], other, files={"tokenizer.json": FILES["tokenizer.json"], "more": b"1"})
    first, second = inspect(path), inspect(other)
    report = link([path, other], both, rename={"b.pte:forward": "other"})
    assert dict(load(both).files) == {**FILES, "more": b"1"}
    assert report.saved >= len(FILES["tokenizer.json"])
    assert report.size < first.size + second.size - len(FILES["tokenizer.json"]) + 4096
    assert both.read_bytes().count(FILES["tokenizer.json"]) == 1


def test_unequal_ones_of_a_name_are_refused(path: Path, pte: Pte, tmp_path: Path) -> None:
    other = tmp_path / "b.pte"
    link([pte("mlp")], other, files={"tokenizer.json": b"{}"})
    with pytest.raises(LinkError) as raised:
        link([path, other], tmp_path / "c.pte", rename={"b.pte:forward": "other"})
    assert str(raised.value) == (
        f"file 'tokenizer.json' is not the same in {path} and in {other}; leave it out of one of "
        "the specs, or rename it there, and build that again"
    )
    assert not (tmp_path / "c.pte").exists()
    with pytest.raises(LinkError, match=r"'tokenizer\.json' is not the same as that in one of the"):
        link([path], tmp_path / "c.pte", files={"tokenizer.json": b"{}"})


def test_the_checksum_covers_them(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(FILES["tokenizer.json"]) + 70] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.pte: is damaged: its bytes have CRC-32"):
        load(path)


def rewritten(
    path: Path, listed: Mapping[str, int] | None, keys: Mapping[str, str] = {}
) -> None:  # `keys` is read only
    """The same program, sealed anew, with these files in its manifest (None: without a manifest),
    and some files under other names."""
    with PteFile.open(path) as file:
        manifest = read_manifest(file)
        assert manifest is not None
        named = [
            NamedData(keys.get(n.key or "", n.key), n.segment_index)
            for n in file.program.named_data or ()
            if n.key != INTEGRITY_KEY and (listed is not None or n.key != MANIFEST_KEY)
        ]
        segments = [Segment.of(Piece((file, extent))) for extent in file.segments[:-1]]
        if listed is not None:
            made = manifest_bytes(evolve(manifest, files=dict(listed)))
            segments[file.named[MANIFEST_KEY]] = Segment.of(made)
        write_pte(path.with_name("wrong.pte"), evolve(file.program, named_data=named), segments)


SIZES = {name: len(content) for name, content in FILES.items()}


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ({**SIZES, "more": 1}, "the program has no file 'more'"),
        ({"empty": 0, "é b": 1}, "does not list the file 'tokenizer.json'"),
        ({**SIZES, "é b": 2}, "file 'é b' has 1 bytes, and 2 are listed"),
        (None, "does not list the file 'empty'"),
    ],
)
def test_a_manifest_that_lists_other_ones(
    listed: Mapping[str, int] | None, told: str, path: Path
) -> None:
    rewritten(path, listed)
    with (
        open_program(path.with_name("wrong.pte")) as file,
        pytest.raises(FormatError, match=rf"wrong\.pte: manifest: {told}$"),
    ):
        read_manifest(file)


def test_a_name_that_leads_elsewhere(path: Path) -> None:
    rewritten(path, {**SIZES, "../x": 1}, {f"{FILE_PREFIX}é b": f"{FILE_PREFIX}../x"})
    with pytest.raises(
        FormatError, match=r"expected a plain name like tokenizer\.json, got '\.\./x"
    ):
        load(path.with_name("wrong.pte"))
