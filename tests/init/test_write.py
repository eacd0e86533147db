"""The text of a spec: whole, for two decoders; and that every one is right."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mmpack.multimethod.check import check
from mmpack.multimethod.huggingface.model import draw_decoder, read_config
from mmpack.multimethod.init import Choices, Target, init
from mmpack.multimethod.init.choices import Cache, Split
from mmpack.multimethod.init.decoder import read_decoder
from mmpack.multimethod.init.rehearse import rehearse
from mmpack.multimethod.init.write import Sources, write_spec

from ..wrappers.families import FAMILIES, config_of

HERE = Path(__file__).parent
NPU = Target("qnn", {"soc": "SM8750", "precision": "16a4w"}, quantized=True, calibrated=True)
CPU = Target("xnnpack", {"precision": "8da4w"}, quantized=True)
CUTS: list[tuple[Split, Cache]] = [
    ("qkv/attention/mlp", "dynamic"),
    ("qkv/attention/mlp", "fixed"),
    ("block", "fixed"),
    ("whole", "fixed"),
]


def save_config(family: str, folder: Path) -> Path:
    config = config_of(family)
    name = type(config).__name__.removesuffix("Config").removesuffix("Text")
    config.architectures = [f"{name}ForCausalLM"]
    config.save_pretrained(folder)
    return folder / "config.json"


@pytest.mark.parametrize(
    ("family", "choices", "golden"),
    [
        ("llama 2", Choices(8, 64), "llama.yaml"),
        ("gemma3", Choices(8, 64, "qkv/attention/mlp", "fixed", NPU, CPU, "4w"), "gemma3.yaml"),
    ],
)
def test_texts(family: str, choices: Choices, golden: str, tmp_path: Path) -> None:
    """What a person would have written: read the goldens."""
    source = save_config(family, tmp_path / "m")
    written = init(source, tmp_path / golden, choices)
    assert (tmp_path / golden).read_text() == (HERE / "goldens" / golden).read_text()
    assert len(written) == 1 + (choices.npu is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_cut_is_right(family: str, tmp_path: Path) -> None:
    config = read_config(save_config(family, tmp_path))
    decoder = read_decoder(draw_decoder(config, device="meta"))
    rehearse(config, decoder)
    spec = tmp_path / "spec.yaml"
    (tmp_path / "calibration.py").write_text("def prompts(): ...")
    for (split, cache), npu, chunk in itertools.product(CUTS, (None, NPU), (8, 1)):
        choices = Choices(chunk, 64, split, cache, npu)
        sources = Sources("config.json", {}, "calibration.py:prompts" if npu else None)
        spec.write_text(write_spec(decoder, choices, sources, "spec"))
        found = check(spec)
        sizes = 1 if chunk == 1 else 2
        assert len(found.steps) == sizes
        assert len(found.methods) >= sizes
        assert all(len(line) <= 160 for line in spec.read_text().splitlines())
