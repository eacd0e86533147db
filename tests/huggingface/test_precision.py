"""Quantized, calibrated and captured methods of a checkpoint in half precision, beside those of the
same checkpoint written in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmpack.multimethod import Program, load

from ..compile.projects import Project
from .checkpoints import save

SPEC = """
mmpack: 1
model: {huggingface: NAME}
sample: {input_ids: {shape: [1, 5], dtype: int64, range: 0..60}}
calibration: prompts.py:prompts
targets: {cpu: {backend: xnnpack}, plain: {backend: portable}}
methods:
  mlp: {module: model.layers.1.mlp, target: cpu, precision: 8a8w}
  norm: {module: model.norm, target: cpu}
  head: {module: lm_head, target: cpu, precision: 8da4w, inputs: {input: [1, 5, 32]}, sqnr: 5}
  embed: {module: model.embed_tokens, target: plain}
"""
PROMPTS = """
import torch

def prompts():
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        yield {"input_ids": torch.randint(0, 61, (1, 5), generator=generator)}
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> dict[str, Program]:
    """The same weights, kept in bfloat16 and in float32."""
    folder = tmp_path_factory.mktemp("precision")
    save(folder / "bfloat16", "llama 2", torch.bfloat16)
    save(folder / "float32", "llama 2")
    tensors = load_file(folder / "bfloat16" / "model.safetensors")
    widened = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(widened, folder / "float32" / "model.safetensors", metadata={"format": "pt"})
    programs = {}
    torch.set_num_threads(1)  # as lowering in this process does; sums depend on it
    for dtype in ("bfloat16", "float32"):
        project = Project(folder, build_cache)
        project.output = folder / f"{dtype}.pte"
        project.file("prompts.py", PROMPTS)
        project.spec(SPEC.replace("NAME", dtype), head="")
        report = project.build()
        assert report.compiled == len(report.methods)
        assert project.build().compiled == 0
        programs[dtype] = load(project.output)
    return programs


@pytest.mark.parametrize("method", ["mlp", "norm", "head", "embed"])
def test_programs_compute_the_same(programs: dict[str, Program], method: str) -> None:
    half, full = programs["bfloat16"], programs["float32"]
    assert str(half.signature(method)) == str(full.signature(method))
    assert half[method].ranges == full[method].ranges
    (value,) = full.signature(method).inputs
    given: Any = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(7))
    if value.dtype == "int64":
        given = torch.tensor([[0, 60, 3, 3, 8]])
    assert torch.equal(half.run_method(method, given)[0], full.run_method(method, given)[0])


def test_programs_are_of_one_size(programs: dict[str, Program]) -> None:
    sizes = {program.path.stat().st_size for program in programs.values()}
    assert max(sizes) - min(sizes) < 1024  # their manifests differ
