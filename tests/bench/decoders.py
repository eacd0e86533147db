"""The decoder that benchmarks cut: as wide as SmolLM2-135M, with fewer layers and words."""

from __future__ import annotations

from typing import Any

import transformers


def smollm2_like(layers: int, vocabulary: int, context: int) -> Any:
    """Its configuration; the weights are random."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
