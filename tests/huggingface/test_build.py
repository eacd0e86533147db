"""A program built from a checkpoint in half precision, beside transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmpack.multimethod import Context, Program, build, load
from mmpack.multimethod.compile import objects

from ..compile.projects import run_here
from .checkpoints import llama_spec, save

NEW = 32
"""Tokens that are written."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hf") / "llama", "llama 2", torch.bfloat16, "20KB")


@pytest.fixture(scope="module")
def program(folder: Path, build_cache: Path) -> Program:
    spec = folder.parent / "spec.yaml"
    config = json.loads((folder / "config.json").read_text())
    spec.write_text(llama_spec("llama", config, layers=3))
    report = build(spec, folder.parent / "llama.pte", cache=build_cache)
    assert [flow.compared for flow in report.flows] == [True, True]
    return load(folder.parent / "llama.pte")


def test_logits_and_tokens_are_those_of_transformers(folder: Path, program: Program) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    prompt = torch.randint(0, 61, (1, 11), generator=torch.Generator().manual_seed(3))
    context = Context()
    logits = program.flow("prefill").run(prompt, context=context).logits
    with torch.no_grad():
        torch.testing.assert_close(logits, model(prompt).logits, atol=1e-3, rtol=1e-3)
    written: list[int] = []
    while len(written) < NEW:
        written.append(int(logits[0, -1].argmax()))
        token = torch.tensor([[written[-1]]])
        logits = program.flow("decode").run(token, context=context).logits
    wanted = model.generate(
        prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    assert written == wanted[0, prompt.shape[1] :].tolist()


@pytest.mark.slow
def test_layers_in_half_precision_are_made_like_one_another(
    folder: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "run_jobs", run_here)
    made = []
    for share in (True, False):
        path = tmp_path / f"{share}.pte"
        spec, cache = folder.parent / "spec.yaml", tmp_path / f"cache {share}"
        report = build(spec, path, cache=cache, verify=False, share=share)
        assert bool(report.rebound) == share
        made.append(path.read_bytes())
    assert made[0] == made[1]


def test_the_program_holds_float32_alone(program: Program) -> None:
    for method in program:
        signature = program.signature(method)
        dtypes = {value.dtype for value in (*signature.inputs, *signature.outputs)}
        assert dtypes <= {"float32", "int64"}, method
