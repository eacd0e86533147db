"""Small random decoders of the families that the wrappers can cut, made by transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 96,
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("Llama", {}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA_3, "num_key_value_heads": 1}),
    "smollm2": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "num_attention_heads": 3,
            "head_dim": None,
            "num_key_value_heads": 1,
            "hidden_size": 24,
        },
    ),
    "biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2 windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ALTERNATING},
    ),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral without window": ("Mistral", {"sliding_window": None}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 5,
            "layer_types": ALTERNATING,
            "query_pre_attn_scalar": 11,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 0.7,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {"sliding_window": 5, "layer_types": ALTERNATING, "query_pre_attn_scalar": 11},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "qwen3 moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3 window": ("Phi3", {"sliding_window": 5}),
    "phi4": ("Phi3", {"rope_parameters": PARTIAL, "sliding_window": None}),
    "phi3 long": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 96}),
}


def config_of(family: str) -> Any:
    """Its configuration."""
    name, more = FAMILIES[family]
    sizes = {k: v for k, v in {**SIZES, **more}.items() if v is not None or k == "sliding_window"}
    return getattr(transformers, f"{name}Config")(**sizes)


def make(family: str) -> Any:
    """A random decoder in eval mode, its norms random too, which would start as ones."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config_of(family), attn_implementation="eager"
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)
