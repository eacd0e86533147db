"""Each family from its configuration to text: `init`, `build`, and the program beside transformers.

The random models have norms of their own (`families.make`), so they are saved as checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmpack.multimethod import Context, Program, build, generate, load
from mmpack.multimethod.init import Choices, init
from mmpack.multimethod.init.choices import Cache, Split

from ..wrappers.families import FAMILIES, make

CHUNK, CONTEXT, WRITTEN, MOST = 8, 64, 32, 1e-3
FINE: Split = "qkv/attention/mlp"
CUTS: list[tuple[str, Split, Cache]] = [
    *((family, FINE, "dynamic") for family in FAMILIES),
    ("gemma3", FINE, "fixed"),
    ("gemma2", "block", "fixed"),
    ("phi4", "block", "fixed"),
    ("qwen2 windows", "whole", "fixed"),
    ("gemma3", "whole", "fixed"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "split", "cache"), CUTS)
def test_a_family_is_split_and_writes_as_transformers_does(
    family: str, split: Split, cache: Cache, tmp_path: Path, build_cache: Path
) -> None:
    model = make(family)
    model.save_pretrained(tmp_path / "model")
    spec = tmp_path / "spec.yaml"
    init(tmp_path / "model", spec, Choices(CHUNK, CONTEXT, split, cache))
    program = load(build(spec, tmp_path / "m.pte", jobs=2, cache=build_cache).output)
    for length in (1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK):
        text = tokens(length)
        got = program.flow("prefill").run(text).logits
        torch.testing.assert_close(got, model(text).logits, atol=MOST, rtol=0)
    require_same_text(program, model, tokens(CHUNK + 1))


@pytest.mark.slow
@pytest.mark.parametrize("split", [FINE, "whole"])
def test_a_prompt_token_by_token(split: Split, tmp_path: Path, build_cache: Path) -> None:
    """For backends without chunk methods: the same logits, and the same text."""
    model = make("llama 3")
    model.save_pretrained(tmp_path / "model")
    spec = tmp_path / "spec.yaml"
    init(tmp_path / "model", spec, Choices(1, CONTEXT, split))
    program = load(build(spec, tmp_path / "m.pte", jobs=2, cache=build_cache).output)
    assert list(program.flows) == ["decode"]
    text = tokens(CHUNK + 1)
    got = program.flow("decode").run(text).logits
    torch.testing.assert_close(got, model(text).logits, atol=MOST, rtol=0)
    require_same_text(program, model, text)


def require_same_text(program: Program, model: torch.nn.Module, text: torch.Tensor) -> None:
    """32 tokens after a text, and the logits that each of them was chosen from."""
    written = list(generate(program, text[0].tolist(), max_tokens=WRITTEN))
    context, logits = Context(), None
    for token in [*text[0].tolist(), *written]:
        if logits is not None and text.shape[1] == context.position:
            expected = model(text).logits[:, -1]
            torch.testing.assert_close(logits, expected, atol=MOST, rtol=0)
            assert int(expected.argmax()) == token
            text = torch.cat([text, torch.tensor([[token]])], dim=1)
        step = program.flow("decode").run(torch.tensor([[token]]), context=context)
        logits = step.logits[:, -1]
    assert len(written) == WRITTEN


def tokens(length: int) -> torch.Tensor:
    return torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(length))
