"""What `inspect` shows of a program, of ours and of others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from torch import nn
from torch.export import export

from mmpack.multimethod import FormatError, inspect, load
from mmpack.multimethod.link import link, open_program, read_manifest

TOY = """\
toy.pte: # kB, 5 methods, made by mmpack #

blend(x: float32[2, three=3], y: float32[2, three=3], picks: int64[4])\
 -> (mixed: float32[2, 3], picked: float32[2, 4])
  target plain, no delegate
  on the CPU: aten::index_select.out, aten::mul.out, aten::sub.out,\
 dim_order_ops::_to_dim_order_copy.out
  data #, arenas 144 B, max error #
matmul(a: float32[m=1..8, 4], b: float32[4, n=2..8]) -> (product: float32[m, n])
  target plain, no delegate
  on the CPU: aten::mm.out
  data #, arenas 512 B, max error #
window(x: float32[w=4..16:4, 2], y: float32[w=4..16:4, 2]) -> (joined: float32[w, 4])
  target plain, no delegate
  on the CPU: aten::cat.out, aten::neg.out
  data #, arenas 512 B, max error #
add(amount: float32[2]) -> (total: float32[2], calls: float32[1])
  target plain, no delegate
  on the CPU: aten::add.out × 2, aten::copy_ × 2, dim_order_ops::_clone_dim_order.out × 2,\
 dim_order_ops::_to_dim_order_copy.out
  data #, arenas 64 B + 48 B, max error #
scaled(factor: float32[2]) -> (product: float32[2], calls: float32[1])
  target plain, no delegate
  on the CPU: aten::add.out, aten::copy_, aten::mul.out, dim_order_ops::_clone_dim_order.out,\
 dim_order_ops::_to_dim_order_copy.out
  data #, arenas 64 B + 48 B, max error #

constants
  get_max_rows = 16
  scale = 0.25
  title = 'a toy'

state total: float32[2], shared by add, scaled

state calls: float32[1], private to add

state calls: float32[1], private to scaled

constant data #, named data # in 2 blobs, # saved by sharing
  executorch: #
  model: model.py:Toy
  spec: toy.yaml
  spec_sha256: #
  torch: #
the checksum is right"""


def without_figures(text: str, path: Path) -> str:
    """The text of an inspection with `#` for what depends on versions and on the machine."""
    text = text.replace(f"{path}: ", f"{path.name}: ")
    text = re.sub(r"(?<=\.pte: )[\d.]+", "#", text)
    text = re.sub(r"(?<=made by mmpack )\S+", "#", text)
    text = re.sub(r"(?<=data )[\d.]+ k?B", "#", text)
    text = re.sub(r"[\d.]+ k?B(?= saved)", "#", text)
    text = re.sub(r"(?<=max error )\S+", "#", text)
    return re.sub(r"(?<=\n  )(executorch|torch|spec_sha256): \S+", r"\1: #", text)


def test_a_program_of_ours_is_shown_whole(toy: Path) -> None:
    assert without_figures(str(inspect(toy)), toy) == TOY


FOREIGN = """\
foreign.pte: # kB, 5 methods

delegated(in_0: float32[2, 2]) -> (out_0: float32[2, 2])
  1 × XnnpackBackend
  data #, arenas 96 B
pooled(in_0: float32[1, 2, 4, 6]) -> (out_0: float32[1, 2, 2, 3])
  no delegate
  on the CPU: aten::max_pool2d_with_indices.out
  data #, arenas 336 B
products(in_0: float32[in_0_0=1..8, in_0_1=1..4], in_1: float32[in_1_0=1..4, in_1_1=1..9])\
 -> (out_0: float32[out_0_0, out_0_1], out_1: float32[out_1_0, out_1_1])
  no delegate
  on the CPU: aten::add.out, aten::mm.out, dim_order_ops::_to_dim_order_copy.out
  data #, arenas 560 B
scaled(in_0: float32[3], in_1: int, in_2: float, in_3: bool) -> (out_0: float32[3])
  no delegate
  on the CPU: aten::add.out, aten::mul.out, dim_order_ops::_to_dim_order_copy.out
  data #, arenas 48 B
get_vocab_size() -> (out_0: int)
  no delegate
  data #, arenas none

constant data #, named data # in 0 blobs, # saved by sharing
no checksum: mmpack did not make this file"""


def test_a_foreign_program_is_shown_too(foreign: Path) -> None:
    assert without_figures(str(inspect(foreign)), foreign) == FOREIGN


def test_the_plain_form_survives_json_and_says_the_same(toy: Path) -> None:
    seen = inspect(toy)
    plain = json.loads(json.dumps(seen.as_dict()))
    assert plain["size"] == toy.stat().st_size
    assert list(plain["methods"]) == ["blend", "matmul", "window", "add", "scaled"]
    matmul = plain["methods"]["matmul"]
    assert matmul["text"] == str(load(toy).signature("matmul"))
    assert matmul["signature"]["dims"]["n"] == {"name": "n", "min": 2, "max": 8, "step": 1}
    assert matmul["left"] == {"aten::mm.out": 1}
    assert matmul["verified"] is True
    assert plain["constants"] == {"get_max_rows": 16, "scale": 0.25, "title": "a toy"}
    assert [(s["name"], s["shared"], s["methods"]) for s in plain["state"]] == [
        ("total", True, ["add", "scaled"]),
        ("calls", False, ["add"]),
        ("calls", False, ["scaled"]),
    ]
    assert plain["provenance"]["torch"] == torch.__version__
    assert plain["checksum"] == "right"


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "not.pte"
    path.write_bytes(b"not a program" * 9)
    with pytest.raises(FormatError, match=r"not\.pte"):
        inspect(path)
    with pytest.raises(FormatError, match=r"none\.pte: cannot be opened: No such file"):
        inspect(tmp_path / "none.pte")


def test_flows_are_shown_with_what_was_measured(toy: Path) -> None:
    seen = inspect(toy)
    told = {"prefill": {"error": 1.5e-6, "tolerance": 1e-4}, "loose": "not compared"}
    seen = attrs.evolve(
        seen,
        flow=dict.fromkeys(("prefill", "loose", "unknown")),
        provenance={**seen.provenance, "flows": told},
    )
    text = str(seen)
    assert "\nflow prefill: max error 1.5e-06\nflow loose: not compared\nflow unknown\n" in text
    assert "flows" not in text


def test_what_was_not_verified_says_so(toy: Path) -> None:
    seen = inspect(toy)
    view = attrs.evolve(seen.methods["add"], error=None, verified=False)
    seen = attrs.evolve(seen, methods={**seen.methods, "add": view})
    assert [line for line in str(seen).splitlines() if "not verified" in line] == [
        line.partition(", max error")[0] + ", not verified"
        for line in str(inspect(toy)).splitlines()
        if "arenas 64 B + 48 B" in line
    ][:1]


def test_a_linked_program_says_where_each_file_is_from(toy: Path, tmp_path: Path) -> None:
    link([toy], tmp_path / "linked.pte")
    seen = inspect(tmp_path / "linked.pte")
    told = seen.provenance["toy.pte"]
    assert told["spec"] == "toy.yaml"
    seen = attrs.evolve(
        seen,
        flow={"prefill": {}},
        provenance={"mmpack": "0", "toy.pte": {**told, "flows": {"prefill": {"error": 0.5}}}},
    )
    text = str(seen)
    assert "\n  toy.pte\n" in text and "\n    spec: toy.yaml\n" in text
    assert "\nflow prefill: max error 5.0e-01\n" in text
    assert "{" not in text


@pytest.mark.parametrize(
    ("flows", "told"),
    [
        ({"go": {"error": 0.25, "sqnr": 31.26, "least_sqnr": 20.0}}, ": SQNR 31.3 dB"),
        ({"go": {"error": 0.25, "sqnr": None}}, ": max error 2.5e-01"),
        ({"go": {"error": 2, "sqnr": "x"}}, ": max error 2.0e+00"),
        ({"go": {"error": None}}, ""),
        ({"go": {"error": "x"}}, ""),
        ({"go": {"error": True}}, ""),
        ({"go": {"error": 10**400}}, ""),
        ({"go": {}}, ""),
        ({"go": ["not compared"]}, ""),
        ({"go": 3}, ""),
        (["go"], ""),
        ("go", ""),
        (None, ""),
    ],
)
def test_what_is_said_of_a_flow_is_what_can_be_read(toy: Path, flows: object, told: str) -> None:
    seen = inspect(toy)
    provenance = {**seen.provenance, "flows": flows}
    seen = attrs.evolve(seen, flow={"go": {}}, provenance=provenance)
    assert f"\nflow go{told}\n" in str(seen)


@pytest.mark.parametrize(
    ("heads", "told"),
    [
        (
            {"found": 3, "converted": 2, "apart": 0.0015, "unconverted_size": 4096},
            "  2 of 3 attention blocks in single heads, off by 1.5e-03 from the unconverted method",
        ),
        ({"found": 1, "converted": 0}, "  0 of 1 attention blocks in single heads"),
        (
            {"method": "rewrite", "found": 1, "converted": 1},
            "  1 of 1 attention blocks in single heads (rewritten)",
        ),
        ({"found": "x"}, None),
        (["found"], None),
        (None, None),
    ],
)
def test_attention_in_single_heads_is_shown(
    toy: Path, tmp_path: Path, heads: object, told: str | None
) -> None:
    with open_program(toy) as file:
        manifest = read_manifest(file)
    assert manifest is not None
    extra = {"heads": heads} if heads is not None else {}
    record = attrs.evolve(manifest.methods["matmul"], extra=extra)
    manifest = attrs.evolve(manifest, methods={**manifest.methods, "matmul": record})
    made = tmp_path / "made.pte"
    link([toy], made, manifest=manifest)
    seen = inspect(made)
    plain: dict[str, Any] = json.loads(json.dumps(seen.as_dict()))["methods"]
    assert plain["matmul"]["heads"] == (heads if isinstance(heads, dict) else {})
    assert plain["window"]["heads"] == {}
    lines = [line for line in str(seen).splitlines() if "attention blocks" in line]
    assert lines == ([told] if told is not None else [])


class _Both(nn.Module):
    """A linear layer of 16 × 12 and its bias, and another 12 × 12 of one method's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.common, self.own = nn.Linear(16, 12), nn.Linear(12, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.common(x)
        return y


class _More(nn.Module):
    def __init__(self, both: _Both) -> None:
        super().__init__()
        self.both = both

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.both.own(torch.relu(self.both.common(x)))
        return y


COMMON, OWN = (16 * 12 + 12) * 4, 12 * 12 * 4
"""Bytes of the weights that both methods use, and that one does."""


@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
def test_data_and_arenas_are_those_that_executorch_reads(backend: str, tmp_path: Path) -> None:
    """Two methods that share a layer: constants of kernels, or named data of delegates."""
    both, path = _Both().eval(), tmp_path / "sharing.pte"
    lowered = to_edge_transform_and_lower(
        {
            "one": export(both, (torch.ones(3, 16),)),
            "two": export(_More(both).eval(), (torch.ones(50, 16),)),
        },
        partitioner=[XnnpackPartitioner()] if backend == "xnnpack" else None,
    )
    path.write_bytes(lowered.to_executorch().buffer)
    seen, theirs = inspect(path), deserialize_pte_binary(path.read_bytes())

    plans = {plan.name: plan for plan in theirs.program.execution_plan}
    arenas = {name: method.arenas for name, method in seen.methods.items()}
    assert arenas == {n: tuple(p.non_const_buffer_sizes[1:]) for n, p in plans.items()}
    assert arenas["one"] != arenas["two"] and all(len(sizes) == 1 for sizes in arenas.values())
    assert arenas["two"][0] >= 50 * (16 + 12) * 4  # its input and its output

    constants = [len(buffer.storage) for buffer in theirs.program.constant_buffer]
    blobs = theirs.named_data
    named = (
        {k: len(blobs.buffers[e.buffer_index]) for k, e in blobs.pte_data.items()} if blobs else {}
    )
    assert seen.named == named
    assert seen.constant_data == sum(constants)
    stored = [size for size in (*constants, *named.values()) if size]  # the first constant is none
    assert sorted(stored) == sorted([16 * 12 * 4, 12 * 4, OWN])
    assert bool(named) == (backend == "xnnpack")
    assert seen.shared == COMMON
    delegates = {
        name: sum(
            len(theirs.program.backend_delegate_data[d.processed.index].data)
            for d in plan.delegates
        )
        for name, plan in plans.items()
    }
    assert {name: method.bytes for name, method in seen.methods.items()} == {
        "one": COMMON + delegates["one"],
        "two": COMMON + OWN + delegates["two"],
    }


def test_lanes_are_shown_where_there_are_several(two_lanes: Path, toy: Path) -> None:
    shown = str(inspect(two_lanes))
    assert shown.count("target near, lane npu, ") == 1
    assert shown.count("target plain, lane cpu, ") == 3
    assert "lane" not in str(inspect(toy))
    assert inspect(two_lanes).as_dict()["methods"]["front.chunk"]["lane"] == "npu"
