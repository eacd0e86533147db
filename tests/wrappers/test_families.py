"""Decoders of transformers, cut by the wrappers and put together again, chunk by chunk.

The oracle is transformers itself, which reads the whole text at once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from mmpack.multimethod.errors import ModelError
from mmpack.wrappers.attention import Attention
from mmpack.wrappers.attention_block import AttentionBlock
from mmpack.wrappers.embedding import Embedding
from mmpack.wrappers.lm_head import LmHead
from mmpack.wrappers.output_mlp import OutputMlp
from mmpack.wrappers.qkv_proj import QkvProj
from mmpack.wrappers.rotary import Rotary

from .families import FAMILIES, SIZES, make

CHUNK = 8


class Cut:
    """A decoder of transformers in parts, with a cache for each layer."""

    def __init__(self, model: Any) -> None:
        decoder, layers = model.model, model.model.layers
        self.embedding, self.lm_head = Embedding(decoder.embed_tokens), LmHead(model)
        kinds = [getattr(layer.self_attn, "layer_type", None) for layer in layers]
        several = not hasattr(decoder.rotary_emb, "inv_freq")
        self.rotary = [
            Rotary(decoder.rotary_emb, layer_type=kind if several else None) for kind in kinds
        ]
        self.layers = [(QkvProj(y), Attention(y), OutputMlp(y)) for y in layers]
        self.caches: list[tuple[Tensor, Tensor] | None] = [None] * len(layers)
        self.length = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of the next few tokens [1, S]."""
        positions = torch.arange(self.length, self.length + tokens.shape[1])
        self.length += tokens.shape[1]
        hidden = self.embedding(tokens)
        for i, (qkv_proj, attention, output_mlp) in enumerate(self.layers):
            q, k, v = qkv_proj(hidden, *self.rotary[i](positions))
            if (cache := self.caches[i]) is not None:
                k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
            self.caches[i] = k, v
            hidden = output_mlp(hidden, attention(q, k, v, positions))
        return self.lm_head(hidden)

    def of(self, text: Tensor) -> Tensor:
        """Logits of a text [1, S], chunk by chunk."""
        return torch.cat([self(piece) for piece in text.split(CHUNK, dim=1)], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str) -> None:
    model = make(family)
    for length in (1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK):
        text = tokens(length)
        got = Cut(model).of(text)
        torch.testing.assert_close(got, model(text).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_tokens_are_those_of_transformers(family: str) -> None:
    model, text = make(family), tokens(CHUNK + 1)
    cut = Cut(model)
    logits = cut.of(text)[:, -1]
    for _ in range(32):
        expected = model(text).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
        token = expected.argmax(-1, keepdim=True)
        assert logits.argmax() == token
        text = torch.cat([text, token], dim=1)
        logits = cut(token)[:, -1]


APART = [family for family in FAMILIES if not family.startswith("phi")]


@pytest.mark.parametrize("family", APART)
def test_the_block_with_its_cache_is_the_half_of_a_layer(family: str) -> None:
    """No text is longer here than a window, which is the mask's business and not the block's."""
    model, text, past = make(family), tokens(5), 7
    whole = model.model.layers[0]
    seen: list[Any] = []
    hook = whole.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args[0], kwargs["position_embeddings"], out)),
        with_kwargs=True,
    )
    model(text)
    hook.remove()
    ((hidden, (cos, sin), expected),) = seen
    block = AttentionBlock(whole)
    old = torch.randn(2, 1, block.kv_heads, past, block.head_dim)  # rows of another text, unseen
    visible = torch.cat([torch.zeros(5, past).bool(), torch.ones(5, 5).tril().bool()], dim=1)
    half, k, v = block(hidden, cos[0], sin[0], visible, *old)
    assert k.shape == v.shape == (1, block.kv_heads, 5, block.head_dim)
    if family.startswith("gemma"):
        mlp = whole.mlp(whole.pre_feedforward_layernorm(half))
        got = half + whole.post_feedforward_layernorm(mlp)
    else:
        got = half + whole.mlp(whole.post_attention_layernorm(half))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def tokens(length: int) -> Tensor:
    return torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(length))


class TestRefusals:
    """A layer with a part that no wrapper knows would be cut to something else."""

    @pytest.mark.parametrize("wrapper", [QkvProj, OutputMlp, AttentionBlock])
    def test_other_norms(self, wrapper: Any) -> None:
        with pytest.raises(ModelError) as caught:
            wrapper(layer("Olmo2"))
        assert str(caught.value) == (
            "Olmo2DecoderLayer is not made as the wrappers know it: found mlp, "
            "post_attention_layernorm, post_feedforward_layernorm, self_attn; expected "
            "input_layernorm, mlp, post_attention_layernorm, self_attn, or "
            "post_feedforward_layernorm, pre_feedforward_layernorm besides. A wrapper of your own "
            "can cut it: `wrapper: file.py:Class`, a class whose `__init__` takes the module"
        )

    def test_another_projection(self) -> None:
        changed = layer("Llama")
        changed.self_attn.gate_proj = torch.nn.Linear(32, 32)
        with pytest.raises(ModelError, match=r"LlamaAttention is not made .* found gate_proj, "):
            QkvProj(changed)

    def test_one_norm_of_two(self) -> None:
        changed = layer("Qwen3")
        del changed.self_attn.k_norm
        with pytest.raises(ModelError, match="both of q_norm and k_norm, or neither"):
            QkvProj(changed)

    def test_packed_projections_for_an_npu(self) -> None:
        with pytest.raises(ModelError, match="Phi3Attention has its projections packed in one"):
            AttentionBlock(layer("Phi3"))

    def test_no_head_dim(self) -> None:
        changed = layer("Llama")
        del changed.self_attn.head_dim
        with pytest.raises(ModelError, match="LlamaAttention has no `head_dim`; give it in `args`"):
            QkvProj(changed)
        assert QkvProj(changed, head_dim=16).heads == 2
        with pytest.raises(
            ModelError, match=r"32 channels of heads, which is no multiple of .* 24"
        ):
            QkvProj(changed, head_dim=24)

    def test_no_frequencies(self) -> None:
        with pytest.raises(ModelError, match="LlamaDecoderLayer is no rotary embedding; give"):
            Rotary(layer("Llama"))
        rotary_emb = make("gemma3").model.rotary_emb
        with pytest.raises(ModelError, match=r"full_attention, sliding_attention; .* not None"):
            Rotary(rotary_emb)


def layer(family: str) -> Any:
    config = getattr(transformers, f"{family}Config")(**SIZES)
    return transformers.AutoModelForCausalLM.from_config(config).model.layers[0]
