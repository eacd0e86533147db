"""The manifest inside of programs, and what is told about programs that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from mmpack.multimethod.errors import FormatError, LinkError
from mmpack.multimethod.link import (
    Manifest,
    MethodRecord,
    PteFile,
    foreign_signature,
    link,
    read_manifest,
)
from mmpack.multimethod.link.manifest import StateRecord, manifest_bytes, parse_manifest
from mmpack.multimethod.scale import Scale
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
FORWARD = Signature(
    "forward",
    (ValueSpec("x", "float32", (2, 32)),),
    (ValueSpec("out", "float32", (2, 32)),),
    {"kv": KV},
)
"""What the program `mlp` can say of its method, with a dim besides."""

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
    scales=(("state", "cache", (Scale(0.5, 3, -128, 127, "int8"),)),),
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


@pytest.mark.parametrize(
    ("right", "wrong"), [(b'"scale":0.5', b'"scale":"half"'), (b',"zero_point":3', b"")]
)
def test_scales_that_are_none(right: bytes, wrong: bytes) -> None:
    data = manifest_bytes(MANIFEST)
    assert right in data
    with pytest.raises(FormatError, match=r"^x: manifest: .* @ \$\.methods\['attention'\]\.scales"):
        parse_manifest(data.replace(right, wrong), "x")


def test_linked_programs_have_one(pte: Pte, tmp_path: Path) -> None:
    given = Manifest(
        methods={"forward": evolve(RECORD, signature=FORWARD)},
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


def flow(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"cut": {"x": "kv"}, "steps": list(steps), "outputs": ["out"], "reference": "forward"}


def program(pte: Pte, path: Path, dim: Dim = KV, flows: dict[str, Any] | None = None) -> Path:
    """A program that says of itself that its `forward` is `FORWARD`, with this dim."""
    signature = evolve(FORWARD, dims={dim.name: dim})
    record = evolve(RECORD, signature=signature)
    link([pte("mlp")], path, manifest=Manifest({"forward": record}, flow=flows or {}, mmpack="9"))
    return path


def test_records_and_flows_follow_a_rename(pte: Pte, tmp_path: Path) -> None:
    given = flow(
        {"run": "forward", "with_": {"forward": "forward"}, "steps": []},
        {"run": None, "steps": [{"run": "forward"}, {"run": "elsewhere"}]},
    )
    path = program(pte, tmp_path / "a.pte", flows={"forward": given})
    report = link([path], tmp_path / "b.pte", rename={"forward": "encode"})
    assert set(report.manifest.methods) == {"encode"}
    assert report.manifest.methods["encode"].signature.method == "encode"
    assert report.manifest.provenance == {"a.pte": {"mmpack": "9"}}
    assert report.manifest.flow == {
        "forward": flow(
            {"run": "encode", "with_": {"forward": "forward"}, "steps": []},
            {"run": None, "steps": [{"run": "encode"}, {"run": "elsewhere"}]},
        )
    }
    assert link([path], tmp_path / "c.pte").manifest.flow == {"forward": given}


@pytest.mark.parametrize("odd", [{}, None, 3, {"steps": 3}, {"steps": [3, {"run": [1]}]}])
def test_a_flow_that_is_none_is_carried_over_as_it_is(odd: Any, pte: Pte, tmp_path: Path) -> None:
    path = program(pte, tmp_path / "a.pte", flows={"f": odd})
    report = link([path], tmp_path / "b.pte", rename={"forward": "encode"})
    assert report.manifest.flow == {"f": odd}


def test_provenance_of_files_of_one_name(pte: Pte, tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two", "three/one"):
        (tmp_path / folder).mkdir(parents=True)
        made.append(tmp_path / folder / "model.pte")
        record = evolve(RECORD, signature=FORWARD)
        given = Manifest({"forward": record}, provenance={"spec": folder}, mmpack="9")
        link([pte("mlp")], made[-1], manifest=given, rename={"forward": "forward"})
    made.append(program(pte, tmp_path / "other.pte"))
    rename = {f"{path}:forward": f"f{number}" for number, path in enumerate(made)}
    report = link(made, tmp_path / "x.pte", rename=rename)
    assert report.manifest.provenance == {
        f"{tmp_path.name}/one/model.pte": {"mmpack": "9", "spec": "one"},
        "two/model.pte": {"mmpack": "9", "spec": "two"},
        "three/one/model.pte": {"mmpack": "9", "spec": "three/one"},
        "other.pte": {"mmpack": "9"},
    }


def test_two_flows_of_one_name(pte: Pte, tmp_path: Path) -> None:
    flows = {"go": flow({"run": "forward"}), "on": flow({"run": "forward"})}
    a = program(pte, tmp_path / "a.pte", flows=flows)
    b = program(pte, tmp_path / "b.pte", flows=flows)
    with pytest.raises(LinkError) as error:
        link([a, b], tmp_path / "x.pte", rename={"b.pte:forward": "again"})
    assert str(error.value).splitlines() == [
        f"two flows are called {name!r}, in {a} and in {b}; rename one in its spec and build that "
        "again"
        for name in ("go", "on")
    ]
    assert not (tmp_path / "x.pte").exists()


@pytest.mark.parametrize("dim", [Dim("kv", 16, 512, 32), Dim("kv", 32, 64, 32), Dim("kv", 32, 512)])
def test_one_dim_of_two_sizes(dim: Dim, pte: Pte, tmp_path: Path) -> None:
    a, b = program(pte, tmp_path / "a.pte"), program(pte, tmp_path / "b.pte", dim)
    with pytest.raises(LinkError) as error:
        link([a, b], tmp_path / "x.pte", rename={"b.pte:forward": "again"})
    assert str(error.value) == (
        f"dim 'kv' is kv=32..512:32 in method 'forward' of {a} and {dim} in method 'again' of {b}, "
        "and means one size everywhere in a program; rename one in its spec and build that again"
    )
    assert not (tmp_path / "x.pte").exists()


def test_one_dim_of_one_size_may_come_from_two_files(pte: Pte, tmp_path: Path) -> None:
    a, b = program(pte, tmp_path / "a.pte"), program(pte, tmp_path / "b.pte")
    report = link([a, b], tmp_path / "x.pte", rename={"b.pte:forward": "again"})
    assert [dict(r.signature.dims) for r in report.manifest.methods.values()] == [{"kv": KV}] * 2


def test_dims_of_foreign_methods_are_their_own(pte: Pte, tmp_path: Path) -> None:
    """They are called after their place (`in_0_0`), and never clash: not those of a foreign file,
    and not those of one that was linked before."""
    link([pte("dynamic")], tmp_path / "linked.pte")
    own = program(pte, tmp_path / "own.pte", Dim("in_0_0", 1, 3))
    report = link(
        [tmp_path / "linked.pte", pte("dynamic"), own],
        tmp_path / "x.pte",
        rename={"linked.pte:forward": "one", "dynamic.pte:forward": "two"},
    )
    dims = {name: r.signature.dims["in_0_0"].max for name, r in report.manifest.methods.items()}
    assert dims == {"one": 16, "two": 16, "forward": 3}


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
