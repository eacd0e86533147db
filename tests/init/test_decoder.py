"""What is read from a decoder's modules, by transformers' own configurations; and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.init.decoder import Decoder, Kind, read_decoder

from ..wrappers.families import FAMILIES, SIZES, config_of

FULL = (Kind("full", None, None, False, 0),)
EXPECTED: dict[str, dict[str, Any]] = {
    "llama 3": {"kv_heads": 1},
    "smollm2": {"hidden": 24, "heads": 3, "kv_heads": 1},
    "qwen2 windows": {
        "kinds": (Kind("sliding", None, 5, False, 0), Kind("full", None, None, False, 1)),
        "order": ("sliding", "full", "sliding"),
    },
    "mistral": {
        "kinds": (Kind("sliding", None, 5, False, 0),),
        "order": ("sliding", "sliding", "sliding"),
    },
    "gemma2": {
        "kinds": (Kind("sliding", None, 5, True, 0), Kind("full", None, None, True, 1)),
        "order": ("sliding", "full", "sliding"),
    },
    "gemma3": {
        "kinds": (
            Kind("sliding", "sliding_attention", 5, False, 0),
            Kind("full", "full_attention", None, False, 1),
        ),
        "order": ("sliding", "full", "sliding"),
    },
    "phi3 window": {
        "kinds": (Kind("sliding", None, 5, False, 0),),
        "order": ("sliding", "sliding", "sliding"),
    },
    "phi4": {"rotary": 4},
    "phi3 long": {"longest": 96},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    expected = {
        "hidden": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "rotary": 8,
        "vocabulary": 61,
        "kinds": FULL,
        "order": ("full", "full", "full"),
        "longest": 128,
    } | EXPECTED.get(family, {})
    expected["sample"] = len(set(expected["order"]))  # the second layer is the first of its kind
    model = skeleton(config_of(family))
    assert read_decoder(model) == Decoder(title=type(model).__name__, **expected)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("GPT2", "found lm_head, transformer; expected lm_head, model. A spec by hand can cut it"),
        ("Opt", "OPTModel is not made as the wrappers know it: found decoder; expected embed_tok"),
        ("Olmo2", "Olmo2DecoderLayer is not made as the wrappers know it: found mlp, post_atten"),
    ],
)
def test_others_are_refused(family: str, message: str) -> None:
    named = {"GPT2": "GPT2Config", "Opt": "OPTConfig"}.get(family, f"{family}Config")
    config = getattr(transformers, named)(**({} if family in ("GPT2", "Opt") else SIZES))
    with pytest.raises(ModelError) as raised:
        read_decoder(skeleton(config))
    assert message in str(raised.value)
    assert "`wrapper: file.py:Class`" in str(raised.value)


def test_layers_that_differ_in_heads() -> None:
    model = skeleton(config_of("llama 2"))
    attention = model.model.layers[2].self_attn
    with torch.device("meta"):
        attention.k_proj, attention.v_proj = torch.nn.Linear(32, 8), torch.nn.Linear(32, 8)
    with pytest.raises(ModelError) as raised:
        read_decoder(model)
    assert "[4, 2, 8, 8] from layer 0 on, [4, 1, 8, 8] from layer 2 on" in str(raised.value)


def skeleton(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)
