"""Thirty layers of SmolLM2-135M's shape, cut in 128 methods: a build from an empty cache, held
against one call of `to_edge_transform_and_lower` with the same methods; and what a build takes
when one method of it has changed.

    pytest tests/bench/test_cold_build.py --benchmark-only -s

Each is a process of its own, timed from its start to its end: imports, the model and its weights,
and the file that is written are in all. The call exports, lowers and writes; the build verifies
besides. Processes take turns, and medians are compared.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .test_smollm2 import CONFIG

TURNS = 3
ONE_CALL = """
import sys
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from mmpack.multimethod.compile.dims import torch_dim
from mmpack.multimethod.compile.model import load_model
from mmpack.multimethod.compile.unit import make_units
from mmpack.multimethod.samples import middle_sizes, random_inputs
from mmpack.multimethod.spec import load_spec
from mmpack.multimethod.targets import BACKENDS

spec_file = load_spec(sys.argv[1])
units = make_units(spec_file, load_model(spec_file))
programs, partitioners = {}, {}
for name, unit in units.items():
    generator = torch.Generator().manual_seed(0)
    inputs = random_inputs(unit.inputs, middle_sizes(unit.dims), unit.ranges, generator)
    dims = {name: torch_dim(dim) for name, dim in unit.dims.items() if not dim.fixed}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(value.shape) if size in dims}
        for value in unit.inputs
    )
    with torch.no_grad():
        programs[name] = torch.export.export(
            unit.module.flattened(), tuple(inputs), dynamic_shapes=(shapes,), strict=False
        )
    backend = BACKENDS[unit.backend]
    partitioners[name] = backend.partitioners(backend.options(unit.options))
edge = to_edge_transform_and_lower(programs, partitioner=partitioners)
with open(sys.argv[2], "wb") as file:
    edge.to_executorch(ExecutorchBackendConfig()).write_to_file(file)
print(len(units))
"""
HEAD = """
  lm_head.one:
    module: "."
    wrapper: "head.py:Head"
    target: cpu
    inputs: {hidden: [1, one, 576]}
    outputs: logits
"""
WRAPPER = """
from mmpack.wrappers.lm_head import LmHead

class Head(LmHead):
    edit = %d

    def forward(self, hidden):
        return super().forward(hidden) * 1.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the spec, the checkpoint, and a wrapper of the user's own for one method."""
    import torch
    from safetensors.torch import save_file

    from mmpack.multimethod.huggingface.model import make_decoder

    folder = tmp_path_factory.mktemp("smollm2")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    model: Any = make_decoder(checkpoint / "config.json")
    weights = {n: t.detach().clone() for n, t in model.named_parameters()}
    assert all(t.dtype == torch.float32 for t in weights.values())
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    command = ["init", "--hf", "checkpoint", "--split", "qkv/attention/mlp", "-o", "spec.yaml"]
    _mmpack(folder, *command)
    spec = folder / "spec.yaml"
    text = spec.read_text()
    many = "  lm_head.{n}:\n    each: {n: [chunk, one]}\n"
    assert many in text
    spec.write_text(text.replace(many, HEAD.lstrip("\n") + many.replace("chunk, one", "chunk")))
    (folder / "head.py").write_text(WRAPPER % 0)
    return folder


def test_cold_build_against_one_call(folder: Path, benchmark: Any) -> None:
    """At least four times as fast."""
    calls, builds = [], []
    (folder / "one_call.py").write_text(ONE_CALL)

    def turn() -> None:
        calls.append(_timed(folder, "one_call.py", "spec.yaml", "one_call.pte"))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        builds.append(_timed(folder, "-m", "mmpack.cli", *BUILD))

    benchmark.pedantic(turn, rounds=TURNS)
    call, build = statistics.median(calls), statistics.median(builds)
    told = f"one call {_seconds(calls)}, build {_seconds(builds)}: {call / build:.1f} times"
    print(told)
    benchmark.extra_info["ratio"] = told
    assert call >= 4 * build


BUILD = ("build", "spec.yaml", "-o", "built.pte", "--cache", "cache", "--jobs", "2")


def test_build_after_one_method_has_changed(folder: Path, benchmark: Any) -> None:
    _mmpack(folder, *BUILD)
    took = []

    def turn() -> None:
        (folder / "head.py").write_text(WRAPPER % (1 + len(took)))
        took.append(_timed(folder, "-m", "mmpack.cli", *BUILD))

    benchmark.pedantic(turn, rounds=TURNS)
    print(f"one of 128 methods changed: {_seconds(took)}")
    assert statistics.median(took) < 10


def _timed(folder: Path, *command: str) -> float:
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return time.perf_counter() - began


def _mmpack(folder: Path, *command: str) -> None:
    _timed(folder, "-m", "mmpack.cli", *command)


def _seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} s (of {', '.join(f'{t:.1f}' for t in times)})"
