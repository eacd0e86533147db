"""A decoder of SmolLM2-135M's shape, six layers, split for two chunk sizes: one copy of weights.

Shape: hidden 576, 9 heads, 3 key/value heads of 64, MLP 1536, vocabulary 49152 (Hugging Face,
SmolLM2-135M's config.json); weights random.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpack.examples.adder.demo import SPEC
from mmpack.multimethod import build, check
from mmpack.multimethod.compile.model import load_model

LAYERS = 6
SIZES = {
    "hidden": 576,
    "layers": LAYERS,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "mlp": 1536,
    "vocab": 49152,
}


def _spec(folder: Path) -> Path:
    """The adder's own spec with other sizes."""
    text = SPEC.read_text()
    for old, new in {
        "factory: model.py:adder": f"factory: mmpack.examples.adder.model:adder\n  args: {SIZES}",
        "  weights: adder.safetensors\n": "",
        "chunk: 32": "chunk: 64",
        "{min: 32, max: 256, step: 32}": "{min: 64, max: 512, step: 64}",
        "0..3": f"0..{LAYERS - 1}",
        "head_dim: 16": "head_dim: 64",
        '"{n}", 96]': '"{n}", 576]',
        '["{n}", 16]': '["{n}", 64]',
        '"{n}", 6, 16]': '"{n}", 9, 64]',
        "kv, 2, 16]": "kv, 3, 64]",
        "0..255": "0..511",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "decoder.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_weights_are_stored_once(tmp_path: Path, build_cache: Path) -> None:
    spec = _spec(tmp_path)
    report = build(spec, tmp_path / "decoder.pte", jobs=2, cache=build_cache)
    assert len(report.methods) == 4 * LAYERS + 8
    model = load_model(check(spec))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    size = report.output.stat().st_size
    assert size <= 1.01 * weights + len(report.methods) * 64 * 1024
    # All else takes less than half of what a second copy of one matrix of one layer would.
    assert size - weights < SIZES["hidden"] ** 2 * 4 / 2


def test_its_spec_is_right(tmp_path: Path) -> None:
    assert len(check(_spec(tmp_path)).methods) == 4 * LAYERS + 8
