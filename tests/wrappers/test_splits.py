"""Programs that keep their caches themselves, run beside transformers.

A build holds every method and flow against eager PyTorch and against the model; here the programs
read texts, write tokens, and share their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmpack.multimethod import Context, Program

from ..compile.projects import Project
from . import families
from .splits import MODEL, spec_of

CHUNK, ROWS = 8, 40


def build(folder: Path, cache: Path, family: str, split: str, kernel: str) -> tuple[Program, Any]:
    """The program and its model."""
    project = Project(folder, cache)
    project.file("families.py", Path(families.__file__).read_text())
    project.file("model.py", MODEL.format(families="families"))
    model = families.make(family)
    factory = {"factory": "model.py:made", "args": {"family": family}}
    # On XNNPACK the norm behind Gemma's MLP, whose outputs are tiny here, shows its rounding.
    backend = "portable" if family == "gemma2" else "xnnpack"
    spec = spec_of(model, split, factory, CHUNK, ROWS, kernel, backend=backend)
    project.file("spec.yaml", spec)
    return project.program(), model


WAYS = [
    pytest.param(("qkv", "llama 2", "custom_sdpa"), marks=pytest.mark.slow),
    pytest.param(("block", "gemma2", "none"), marks=pytest.mark.slow),
    ("whole", "mistral", "custom_sdpa"),
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def made(
    request: Any, tmp_path_factory: pytest.TempPathFactory, build_cache: Path
) -> tuple[Program, Any]:
    split, family, kernel = request.param
    return build(tmp_path_factory.mktemp("split"), build_cache, family, split, kernel)


def tokens(length: int) -> Tensor:
    return torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_logits_are_those_of_transformers(made: tuple[Program, Any], length: int) -> None:
    program, model = made
    text = tokens(length)
    expected = model(text).logits
    for name in ("prefill", "decode"):  # token by token too
        got = program.flow(name).run(text).logits
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_text_goes_on_from_chunks_that_are_not_full(made: tuple[Program, Any]) -> None:
    program, model = made
    text = tokens(ROWS)
    expected, context, got = model(text).logits, Context(), []
    for begin, end, name in [
        (0, 3, "prefill"),
        (3, 5, "decode"),
        (5, 18, "prefill"),
        (18, 19, "decode"),
        (19, ROWS, "prefill"),
    ]:
        got.append(program.flow(name).run(text[:, begin:end], context=context).logits)
    torch.testing.assert_close(torch.cat(got, 1), expected, atol=1e-4, rtol=1e-4)


def test_decoded_tokens_are_those_of_transformers(made: tuple[Program, Any]) -> None:
    program, model = made
    text, context = tokens(CHUNK + 1), Context()
    logits = program.flow("prefill").run(text, context=context).logits[:, -1]
    while context.position < ROWS:
        expected = model(text).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
        token = expected.argmax(-1, keepdim=True)
        text = torch.cat([text, token], dim=1)
        logits = program.flow("decode").run(token, context=context).logits[:, -1]


def test_caches_have_their_names_in_the_model_and_are_shared(made: tuple[Program, Any]) -> None:
    program, model = made
    assert program.manifest is not None
    names = [
        f"model.layers.{i}.self_attn.{kind}_cache"
        for i in range(len(model.model.layers))
        for kind in ("key", "value")
    ]
    assert sorted(record.name for record in program.manifest.state) == names
    for record in program.manifest.state:
        assert record.shared and len(record.methods) == 2
        assert record.shape[1] == ROWS


def test_both_flows_have_one_copy_of_the_weights(made: tuple[Program, Any]) -> None:
    program, model = made
    data = program.path.read_bytes()
    tables = {name: p.numpy().tobytes() for name, p in model.named_parameters() if p.dim() == 2}
    assert len(tables) > 20
    assert {name: data.count(table) for name, table in tables.items()} == dict.fromkeys(tables, 1)
