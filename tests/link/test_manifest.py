"""The manifest inside of programs, and what is told about programs that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import (
    Manifest,
    MethodRecord,
    PteFile,
    StateRecord,
    foreign_signature,
    link,
    manifest_bytes,
    read_manifest,
)
from mmpack.multimethod.link.manifest import parse_manifest
from mmpack.multimethod.signature import Dim, Signature, ValueSpec

from .conftest import Pte
from .programs import CONSTANTS

KV = Dim("kv", 32, 512, 32)
SIGNATURE = Signature(
    "attention",
    (ValueSpec("k", "float32", (1, "kv", 32)), ValueSpec("scale", "float", None)),
    (ValueSpec("out", "float32", (1, "kv + 1", 32)),),
    {"kv": KV},
)
RECORD = MethodRecord(
    signature=SIGNATURE,
    target="cpu",
    backend="xnnpack",
    options={"threads": 2, "nested": {"a": [1, 2.5, None, "x"]}},
    operators=9,
    delegated=8,
    left={"aten.sum.dim_IntList": 1},
    size=100,
    key="ab" * 32,
    error=1e-7,
    tolerance=1e-4,
    verified=True,
)
MANIFEST = Manifest(
    methods={"attention": RECORD},
    state=(StateRecord("cache", "float32", (4, 8), True, ("a", "b"), "data"),),
    flow={"generate": {"steps": [{"run": "attention"}]}},
    constants={"n": 1, "f": 1.0, "b": True, "s": "é"},
    provenance={"torch": "2.13.0"},
    mmpack="0.1.0",
)


def test_there_and_back() -> None:
    data = manifest_bytes(MANIFEST)
    back = parse_manifest(data, "x")
    assert back == MANIFEST and manifest_bytes(back) == data
    assert [type(back.constants[k]) for k in "nfbs"] == [int, float, bool, str]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "x: manifest: not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[]", "x: manifest: has no version"),
        (b'{"version":"1"}', "x: manifest: has no version"),
        (
            b'{"version":2,"news":[]}',
            "x: manifest: version 2; this mmpack reads 1, use a newer one",
        ),
        (b'{"version":1,"news":[]}', "x: manifest: extra fields found (news) @ $"),
        (b"[" * 100_000, "x: manifest: not JSON: "),
    ],
)
def test_what_is_no_manifest(data: bytes, said: str) -> None:
    with pytest.raises(FormatError) as error:
        parse_manifest(data, "x")
    assert str(error.value).startswith(said)


def test_linked_programs_have_one(pte: Pte, tmp_path: Path) -> None:
    given = Manifest(
        methods={"forward": evolve(RECORD, signature=evolve(SIGNATURE, method="forward"))},
        mmpack="0.1.0",
    )
    link([pte("put"), pte("mlp")], tmp_path / "x.pte", manifest=given, constants={"n": 3})
    with PteFile.open(tmp_path / "x.pte") as file:
        manifest = read_manifest(file)
    assert manifest is not None
    assert manifest.constants == {"n": 3}
    assert [s.name for s in manifest.state] == ["cache", "other"]
    assert manifest.methods["forward"].size == 16768  # filled in


def test_foreign_methods_are_described(pte: Pte, tmp_path: Path) -> None:
    report = link([pte("constants"), pte("xnnpack_twice")], tmp_path / "x.pte")
    with PteFile.open(tmp_path / "x.pte") as file:
        manifest = read_manifest(file)
    assert manifest is not None and manifest == report.manifest
    assert manifest.constants == CONSTANTS
    assert set(manifest.methods) == {"forward", "again"}
    again = manifest.methods["again"]
    assert again.backend == "XnnpackBackend" and again.delegated == 1 and again.operators == 2
    assert again.extra == {"foreign": True}
    assert str(again.signature) == ("again(in_0: float32[2, 32]) -> (out_0: float32[2, 32])")


def test_records_follow_a_rename(pte: Pte, tmp_path: Path) -> None:
    link(
        [pte("mlp")],
        tmp_path / "a.pte",
        manifest=lambda known: evolve(known, mmpack="9", flow={"f": {}}),
    )
    report = link([tmp_path / "a.pte"], tmp_path / "b.pte", rename={"forward": "encode"})
    assert set(report.manifest.methods) == {"encode"}
    assert report.manifest.methods["encode"].signature.method == "encode"
    assert report.manifest.mmpack == "9"
    assert report.manifest.flow == {}, "a flow that names a renamed method is dropped"
    assert link([tmp_path / "a.pte"], tmp_path / "c.pte").manifest.flow == {"f": {}}


def test_a_manifest_of_other_methods(pte: Pte, tmp_path: Path) -> None:
    strange = Manifest(methods={"attention": RECORD})
    link([pte("mlp")], tmp_path / "x.pte", manifest=strange)
    with (
        PteFile.open(tmp_path / "x.pte") as file,
        pytest.raises(FormatError, match="the program has no method 'attention'"),
    ):
        read_manifest(file)


@pytest.mark.parametrize(
    ("name", "method", "shown"),
    [
        ("mlp", "forward", "forward(in_0: float32[2, 32]) -> (out_0: float32[2, 32])"),
        (
            "dynamic",
            "forward",
            "forward(in_0: float32[in_0_0=1..16, in_0_1=1..32]) -> "
            "(out_0: float32[out_0_0, out_0_1])",
        ),
        (
            "cat",
            "forward",
            "forward(in_0: float32[2, 3, 2], in_1: float32[2, 2, 2]) -> "
            "(out_0: float32[2, 2, 5], out_1: float32[2, 3, 2])",
        ),
        ("constants", "title", "title() -> (out_0: str)"),
        ("constants", "scale", "scale() -> (out_0: float)"),
    ],
)
def test_foreign_signatures(name: str, method: str, shown: str, pte: Pte) -> None:
    with PteFile.open(pte(name)) as file:
        assert str(foreign_signature(file, method)) == shown


def test_no_such_method(pte: Pte) -> None:
    with PteFile.open(pte("mlp")) as file, pytest.raises(FormatError) as error:
        foreign_signature(file, "foward")
    assert str(error.value) == (f"{pte('mlp')}: no method 'foward'; did you mean 'forward'?")
