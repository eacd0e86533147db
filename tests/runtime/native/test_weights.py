"""Weights that several methods have in common are packed once, where that makes nobody wait who
need not, and what they compute is what the stock runtime computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from mmpack.multimethod import load
from mmpack.multimethod.link import open_program
from mmpack.multimethod.runtime.facts import Facts, read_facts
from mmpack.multimethod.runtime.native.sharing import weight_groups

LAYERS, WIDTH, CHUNK = 6, 1024, 16
PACKED = LAYERS * WIDTH * WIDTH * 4


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=i % 2 == 1) for i in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chunk` and `one`: the same layers for two lengths, on XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model = _Layers().eval()
    programs = {
        name: torch.export.export(model, (torch.randn(length, WIDTH),))
        for name, length in (("chunk", CHUNK), ("one", 1))
    }
    lowered = to_edge_transform_and_lower(
        programs, partitioner={name: [XnnpackPartitioner()] for name in programs}
    )
    path = tmp_path_factory.mktemp("sizes") / "sizes.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    return path


def facts_of(path: Path) -> dict[str, Facts]:
    with open_program(path) as file:
        return read_facts(file, None)


def test_both_sizes_compute_what_the_stock_runtime_does_also_without_the_other(
    sizes: Path, stock: Callable[[Path], Any]
) -> None:
    found = weight_groups(facts_of(sizes))
    assert set(found) == {"chunk", "one"} and len(set(found.values())) == 1
    oracle = stock(sizes)
    inputs = {"chunk": torch.randn(CHUNK, WIDTH), "one": torch.randn(1, WIDTH)}
    expected = {name: oracle.load_method(name).execute([x])[0] for name, x in inputs.items()}
    program = load(sizes, engine="native")
    for unloaded in ("chunk", "one", "chunk"):
        for name, x in inputs.items():
            assert torch.equal(program.run_method(name, x).out_0, expected[name])
        program.unload(unloaded)
    other = load(sizes, engine="native", threads=1)
    del program
    for name, x in inputs.items():
        assert torch.equal(other.run_method(name, x).out_0, expected[name])


MEMORY = """
import ctypes, sys, torch
from mmpack.multimethod import load
from mmpack.multimethod.runtime.engine import runtime
runtime()
def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
program = load(sys.argv[1], mmap=True, engine="native")
inputs = {"chunk": torch.randn(16, 1024), "one": torch.randn(1, 1024)}
before = resident()
for name, x in inputs.items():
    program.run_method(name, x)
print(resident() - before)
"""


def test_two_sizes_take_the_memory_of_one(sizes: Path, native_engine: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(sizes)], capture_output=True, text=True, check=True
    )
    assert 0.9 * PACKED < int(done.stdout) <= 1.25 * PACKED


USED, OTHERWISE = frozenset({"here"}), frozenset({"there"})
CASES: dict[str, tuple[dict[str, dict[str, frozenset[str]]], list[set[str]]]] = {
    "two sizes of two layers": (
        {"a.1": {"x": USED}, "a.9": {"x": USED}, "b.1": {"y": USED}, "b.9": {"y": USED}},
        [{"a.1", "a.9"}, {"b.1", "b.9"}],
    ),
    "one of all layers": (
        {"a": {"x": USED}, "b": {"y": USED}, "all": {"x": USED, "y": USED}},
        [],
    ),
    "the same bytes used in another way": ({"a": {"x": USED}, "b": {"x": OTHERWISE}}, []),
    "in two ways by one": ({"a": {"x": USED | OTHERWISE}, "b": {"x": USED | OTHERWISE}}, []),
    "three sizes": ({n: {"x": USED, n: USED} for n in "abc"}, [{"a", "b", "c"}]),
    "nothing in common": ({"a": {"x": USED}, "b": {"y": USED}, "c": {}}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_who_shares(sizes: Path, case: str) -> None:
    some = facts_of(sizes)["one"]
    given, expected = CASES[case]
    found = weight_groups({n: attrs.evolve(some, weights=weights) for n, weights in given.items()})
    groups = [{n for n in found if found[n] == number} for number in sorted(set(found.values()))]
    assert sorted(groups, key=sorted) == expected


class _Twice(nn.Module):
    """The same whole numbers with other scales: `double` gives twice what `single` gives."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 8, bias=False)
        weights = torch.arange(8 * 32).reshape(8, 32) % 9 - 4.0
        self.layer.weight.data = weights * times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


def test_equal_numbers_with_other_scales_are_other_weights(tmp_path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    x = torch.randn(4, 32)
    programs = {}
    for name, times in (("single", 1.0), ("double", 2.0)):
        quantizer = XNNPACKQuantizer().set_global(
            get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
        )
        prepared = prepare_pt2e(torch.export.export(_Twice(times).eval(), (x,)).module(), quantizer)
        prepared(x)
        programs[name] = torch.export.export(convert_pt2e(prepared), (x,))
    lowered = to_edge_transform_and_lower(
        programs, partitioner={name: [XnnpackPartitioner()] for name in programs}
    )
    path = tmp_path / "twice.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    facts = facts_of(path)
    assert facts["single"].weights.keys() & facts["double"].weights.keys()
    assert weight_groups(facts) == {}
    program = load(path, engine="native")
    single, double = (program.run_method(name, x).out_0 for name in programs)
    torch.testing.assert_close(2 * single, double)
    torch.testing.assert_close(single, _Twice(1.0)(x), rtol=0.05, atol=1.0)
