"""Manifests that are wrong inside of a file whose checksum is right, as another tool, or a newer or
older mmpack with a mistake in it, may write them: read, or refused with an error of ours."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from mmpack.multimethod import inspect, link, load
from mmpack.multimethod.errors import CallError, FlowError, FormatError, LinkError
from mmpack.multimethod.link import PteFile, check_integrity
from mmpack.multimethod.link.integrity import INTEGRITY_KEY
from mmpack.multimethod.link.manifest import MANIFEST_KEY, Manifest, MethodRecord
from mmpack.multimethod.link.write import Piece, Segment, write_pte
from mmpack.multimethod.scale import Scale
from mmpack.multimethod.signature import Dim, Signature, ValueSpec

from .conftest import Pte, same
from .mutate import mutated
from .programs import ONE, WIDE

SEEDS = {"bytes": 100, "structure": 250}

ROWS = Dim("rows", 1, 16)
SCALE = Scale(scale=0.5, zero_point=3, low=-128, high=127, dtype="int8")
MANIFEST = Manifest(
    methods={
        "forward": MethodRecord(
            signature=Signature(
                "forward",
                (ValueSpec("x", "float32", ("rows", 32)),),
                (ValueSpec("y", "float32", ("rows", 32)),),
                {"rows": ROWS},
            ),
            target="cpu",
            backend="portable",
            options={"precision": "8a8w"},
            operators=5,
            left={"aten::relu": 1},
            error=1e-7,
            tolerance=1e-4,
            verified=True,
            sqnr=31.5,
            least_sqnr=20.0,
            scales=(("input", "x", (SCALE,)),),
            extra={
                "ranges": {"x": [0, 5]},
                "heads": {"found": 1, "converted": 1, "apart": 1e-3, "unconverted_size": 5},
            },
        ),
        "put": MethodRecord(
            signature=Signature(
                "put", (ValueSpec("x", "float32", (1,)),), (ValueSpec("sum", "float32", ()),)
            ),
        ),
    },
    flow={
        "go": {
            "steps": [{"run": "forward"}],
            "outputs": ["y"],
            "cut": {"x": "rows"},
        }
    },
    provenance={"torch": "2.13.0", "flows": {"go": {"error": 1e-6, "sqnr": None}}},
    mmpack="0.1.0",
)
CALLS = {"forward": WIDE, "put": ONE, "title": ()}


class Sealed:
    """A program whose manifest can be exchanged; the checksum is made anew."""

    def __init__(self, pte: Pte, folder: Path) -> None:
        self.path = folder / "linked.pte"
        self.wrong = folder / "wrong.pte"
        link(
            [pte("dynamic"), pte("put")],
            self.path,
            manifest=MANIFEST,
            constants={"title": "a name"},
            files={"note": b"a file"},
        )
        with PteFile.open(self.path) as file:
            self.manifest = file.segment_bytes(file.named[MANIFEST_KEY])

    def with_manifest(self, manifest: bytes) -> Path:
        with PteFile.open(self.path) as file:
            named = [n for n in file.program.named_data or () if n.key != INTEGRITY_KEY]
            segments = [Segment.of(Piece((file, extent))) for extent in file.segments[:-1]]
            segments[file.named[MANIFEST_KEY]] = Segment.of(manifest)
            write_pte(self.wrong, evolve(file.program, named_data=named), segments)
        with PteFile.open(self.wrong) as file:
            assert check_integrity(file)
            assert file.segment_bytes(file.named[MANIFEST_KEY]) == manifest
        return self.wrong


@pytest.fixture(scope="module")
def sealed(pte: Pte, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return Sealed(pte, tmp_path_factory.mktemp("sealed"))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON tree, as what holds it and its key or index there."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def deep(levels: int) -> Any:
    made: Any = 1
    for level in range(levels):
        made = {"steps": [made]} if level % 2 else [made]
    return made


STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308,
    math.inf, -math.inf, math.nan, "", "x", "forward", "put", "rows", "rows + 1", "0", "float32",
    "int8", "quint8", "\0", "a" * 5000, "\ud800", "\n[bold]\x1b[31m", "__class__", [], [[]], [None],
    [1, 2], ["x"], {}, {"": None}, {"x": {}}, {"version": 1}, {"rows": {"name": "rows"}},
)  # fmt: skip


def changed(plain: dict[str, Any], rng: random.Random) -> Any:
    """A manifest, as plain data, with one to three changes of its structure."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        all_places = list(places(plain))
        holder, key = rng.choice(all_places)
        other, its_key = rng.choice(all_places)
        how = rng.choice(("set", "set", "set", "set", "drop", "move", "rename", "add", "deep"))
        if how == "set":
            holder[key] = rng.choice(STRANGE)
        elif how == "drop":
            del holder[key]
        elif how == "move":
            holder[key] = json.loads(json.dumps(other[its_key]))
        elif how == "rename" and isinstance(holder, dict):
            holder[str(rng.choice(STRANGE))] = holder.pop(key)
        elif how == "add" and isinstance(holder, list):
            holder.insert(key, rng.choice(STRANGE))
        elif how == "add":
            holder[str(rng.choice(STRANGE))] = rng.choice(STRANGE)
        else:
            holder[key] = deep(rng.choice((3, 50, 150, 300, 400)))
    return plain


def read(path: Path, output: Path, expected: dict[str, list[Any]]) -> None:
    """All that mmpack does with a manifest. FormatError at most, but for what names a flow, or
    links; and a method that is not refused is one that computes what it did."""
    seen = inspect(path)
    assert str(seen).encode() and json.dumps(seen.as_dict())
    program = load(path)
    assert repr(program) and list(program) == list(expected)
    with suppress(FlowError, FormatError):
        assert list(program.flows) == list(seen.flow)
    with suppress(LinkError):
        link([path], output)
    for name, results in expected.items():
        assert program.signature(name).method == name
        with suppress(CallError):  # fewer rows than there are, say
            assert same(list(program.run_method(name, *CALLS[name])), results)


@pytest.mark.parametrize("how", ["bytes", "structure"])
def test_a_wrong_manifest_is_read_or_refused(how: str, sealed: Sealed, tmp_path: Path) -> None:
    whole = load(sealed.path)
    expected = {name: list(whole.run_method(name, *CALLS[name])) for name in whole}
    refused = 0
    for seed in range(SEEDS[how]):
        if how == "bytes":
            _, wrong = mutated(sealed.manifest, seed, limit=len(sealed.manifest))
        else:
            wrong = json.dumps(changed(json.loads(sealed.manifest), random.Random(seed))).encode()
        try:
            read(sealed.with_manifest(wrong), tmp_path / "out.pte", expected)
        except FormatError as error:
            assert str(error).startswith(f"{sealed.wrong}: manifest: ")
            refused += 1
    # Most damage is seen, and what says nothing of a method is not fussed over.
    assert SEEDS[how] / 2 < refused < SEEDS[how]


WRONG: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "another name": (("signature", "method"), "put", "its signature is that of 'put'"),
    "no inputs": (("signature", "inputs"), [], "the manifest has 0 inputs and the program 1"),
    "no outputs": (("signature", "outputs"), [], "the manifest has 0 outputs and the program 1"),
    "dtype": (
        ("signature", "inputs", 0, "dtype"),
        "int64",
        "input x: int64[rows=1..16, 32] stands where the program has "
        "in_0: float32[in_0_0=1..16, in_0_1=1..32]",
    ),
    "dtype of an output": (
        ("signature", "outputs", 0, "dtype"),
        "float64",
        "output y: float64[rows=1..16, 32] stands where the program has "
        "out_0: float32[out_0_0=1..16, out_0_1=1..32]",
    ),
    "scalar": (("signature", "inputs", 0, "shape"), None, "input x: float32 stands where"),
    "rank": (("signature", "inputs", 0, "shape"), [32], "input x: float32[32] stands where"),
    "size": (("signature", "inputs", 0, "shape"), [1, 33], "input x: float32[1, 33] stands where"),
    "below zero": (("signature", "inputs", 0, "shape", 1), -1, "input x: float32[rows=1..16, -1]"),
    "unknown dim": (("signature", "inputs", 0, "shape", 0), "r", "input x: float32[r, 32] stands"),
    "too many": (("signature", "dims", "rows", "max"), 17, "input x: float32[rows=1..17, 32]"),
    "backwards": (("signature", "dims", "rows", "min"), 17, "dim 'rows' is rows=17..16:1"),
    "another dim": (("signature", "dims", "rows", "name"), "n", "dim 'rows' is n=1..16:1"),
    "no step": (("signature", "dims", "rows", "step"), 0, "dim 'rows' is rows=1..16:0"),
    "ranges": (("extra", "ranges"), 5, "its ranges are not pairs of integers by input"),
    "a range": (("extra", "ranges", "x"), [0], "its ranges are not pairs of integers by input"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_does_not_fit_its_program_says_where(what: str, sealed: Sealed) -> None:
    keys, value, said = WRONG[what]
    plain = json.loads(sealed.manifest)
    part = plain["methods"]["forward"]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path = sealed.with_manifest(json.dumps(plain).encode())
    for read_it in (inspect, load):
        with pytest.raises(FormatError) as error:
            read_it(path)  # type: ignore[operator]
        assert str(error.value).startswith(f"{path}: manifest: method 'forward': {said}")


@pytest.mark.parametrize("wrong", [[["input", "x"]], [["input", "x", [{"scale": "x"}]]], 3])
def test_scales_that_are_none_say_where(sealed: Sealed, wrong: Any) -> None:
    plain = json.loads(sealed.manifest)
    plain["methods"]["forward"]["scales"] = wrong
    with pytest.raises(FormatError, match=r"manifest: .*\$\.methods\['forward'\]\.scales"):
        inspect(sealed.with_manifest(json.dumps(plain).encode()))


def test_a_static_size_is_the_programs(sealed: Sealed) -> None:
    plain = json.loads(sealed.manifest)
    plain["methods"]["put"]["signature"]["inputs"][0]["shape"] = [0]
    path = sealed.with_manifest(json.dumps(plain).encode())
    with pytest.raises(FormatError) as error:
        load(path)
    assert str(error.value) == (
        f"{path}: manifest: method 'put': input x: float32[0] stands where the program has "
        "in_0: float32[1]"
    )


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({"x": deep(101)}, "has more than 100 levels"),
        ({"x": "\ud800"}, "has text that is none: "),
        ({"\ud800": 1}, "has text that is none: "),
        ({"x": deep(50)}, None),
    ],
)
def test_what_cannot_be_written_again_is_not_read(
    provenance: object, said: str | None, sealed: Sealed, tmp_path: Path
) -> None:
    plain = {**json.loads(sealed.manifest), "provenance": provenance}
    path = sealed.with_manifest(json.dumps(plain).encode())
    if said is None:
        link([path], tmp_path / "again.pte")
        assert inspect(path).provenance == {"mmpack": "0.1.0", **plain["provenance"]}
        return
    with pytest.raises(FormatError) as error:
        inspect(path)
    assert str(error.value).startswith(f"{path}: manifest: {said}")
