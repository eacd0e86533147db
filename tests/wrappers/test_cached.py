"""Decoders of transformers whose methods keep their keys and values themselves, in eager PyTorch.

The oracle is transformers itself, which reads the whole text at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpack.multimethod.compile.widen import compute_in_float32
from mmpack.multimethod.errors import ModelError
from mmpack.wrappers.attention import Attention
from mmpack.wrappers.block import Block
from mmpack.wrappers.cached_attention import CachedAttention
from mmpack.wrappers.decode import Decode
from mmpack.wrappers.embedding import Embedding
from mmpack.wrappers.lm_head import LmHead
from mmpack.wrappers.output_mlp import OutputMlp
from mmpack.wrappers.prefill import Prefill
from mmpack.wrappers.qkv_proj import QkvProj
from mmpack.wrappers.rotary import Rotary, layer_type_of

from .families import FAMILIES, make

CHUNK, ROWS = 8, 48
Run = Callable[[Tensor, Tensor], Tensor]


def whole(model: Any, kernel: str) -> tuple[Run, Run]:
    return Prefill(model, ROWS, kernel), Decode(model, ROWS, kernel)


def layers(model: Any, kernel: str, *, fine: bool) -> tuple[Run, Run]:
    """A method a layer, or three, put together anew for chunks and for tokens."""
    decoder = model.model
    embedding, lm_head = Embedding(decoder.embed_tokens), LmHead(model)
    angles = decoder.rotary_emb

    def made() -> Run:
        blocks = [
            (
                Rotary(angles, layer_type=layer_type_of(angles, layer)),
                _fine(layer, kernel) if fine else Block(layer, ROWS, kernel),
            )
            for layer in decoder.layers
        ]

        def run(tokens: Tensor, positions: Tensor) -> Tensor:
            hidden = embedding(tokens)
            for rotary, block in blocks:
                hidden = block(hidden, *rotary(positions), positions)
            logits: Tensor = lm_head(hidden)
            return logits

        return run

    return made(), made()


def _fine(layer: Any, kernel: str) -> Callable[..., Tensor]:
    qkv_proj, output_mlp = QkvProj(layer), OutputMlp(layer)
    attention = CachedAttention(layer, ROWS, kernel)

    def run(hidden: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
        mixed = attention(*qkv_proj(hidden, cos, sin), positions)
        output: Tensor = output_mlp(hidden, mixed)
        return output

    return run


SPLITS: dict[str, Callable[[Any, str], tuple[Run, Run]]] = {
    "whole": whole,
    "block": lambda model, kernel: layers(model, kernel, fine=False),
    "fine": lambda model, kernel: layers(model, kernel, fine=True),
}


def read(prefill: Run, text: Tensor, start: int = 0) -> Tensor:
    """Logits of a text, chunk by chunk, the last one padded as a flow pads it."""
    got = []
    for begin in range(0, text.shape[1], CHUNK):
        piece = text[:, begin : begin + CHUNK]
        rows = piece.shape[1]
        padded = torch.cat([piece, torch.zeros(1, CHUNK - rows, dtype=torch.int64)], dim=1)
        positions = start + begin + torch.arange(CHUNK).clamp(max=rows - 1)
        got.append(prefill(padded, positions)[:, :rows])
    return torch.cat(got, dim=1)


def tokens(length: int) -> Tensor:
    return torch.randint(1, 61, (1, length), generator=torch.Generator().manual_seed(length))


WAYS = [
    (family, split, kernel)
    for family in FAMILIES
    for split in SPLITS
    for kernel in (("none", "custom_sdpa") if split == "whole" else ("none",))
    if not (family == "gemma2" and kernel == "custom_sdpa")  # its scores are capped
]


@pytest.mark.parametrize(("family", "split", "kernel"), WAYS)
def test_texts_and_what_follows_are_those_of_transformers(
    family: str, split: str, kernel: str
) -> None:
    model = make(family)
    prefill, decode = SPLITS[split](model, kernel)
    # One text after the other over the same caches, the longest first: nothing of it shows.
    for length in (3 * CHUNK, 1, CHUNK - 1, CHUNK, CHUNK + 1):
        text = tokens(length)
        got = read(prefill, text)
        torch.testing.assert_close(got, model(text).logits, atol=1e-4, rtol=1e-4)
    text = torch.cat([text, tokens(32)], dim=1)
    expected = model(text).logits
    for position in range(CHUNK + 1, CHUNK + 33):
        got = decode(text[:, position : position + 1], torch.tensor([position]))
        torch.testing.assert_close(got[0, 0], expected[0, position], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_have_caches_in_float32(dtype: torch.dtype, split: str) -> None:
    model = make("llama 2").to(dtype)
    text = tokens(2 * CHUNK)
    expected = copy.deepcopy(model).float()(text).logits
    compute_in_float32(model)
    prefill, _ = SPLITS[split](model, "none")
    torch.testing.assert_close(read(prefill, text), expected, atol=1e-4, rtol=1e-4)


def test_a_layer_that_computes_in_half_precision_has_them_too() -> None:
    """As a factory may make it: what is written and read is turned from and into its dtype."""
    layer = make("llama 2").model.layers[0].to(torch.bfloat16)
    attention = CachedAttention(layer, 10)
    q, (k, v) = torch.randn(1, 6, 4, 8), torch.randn(2, 1, 6, 2, 8)
    positions = torch.arange(6)
    got = attention(*(t.to(torch.bfloat16) for t in (q, k, v)), positions)
    assert layer.self_attn.key_cache.dtype == torch.float32 and got.dtype == torch.bfloat16
    expected = Attention(make("llama 2").model.layers[0])(q, k, v, positions)
    torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0.03)


def test_of_rows_at_one_position_the_first_is_kept() -> None:
    layer = make("llama 2").model.layers[0]
    attention = CachedAttention(layer, 10)
    k, v = torch.randn(2, 1, 4, 2, 8)
    attention(torch.randn(1, 4, 4, 8), k, v, torch.tensor([3, 7, 3, 7]))
    cache = layer.self_attn.key_cache
    assert torch.equal(cache[:, [3, 7]], k[:, :2])
    assert torch.equal(layer.self_attn.value_cache[:, [3, 7]], v[:, :2])
    assert not cache[:, [0, 1, 2, 4, 5, 6, 8, 9]].any()


@pytest.mark.parametrize("kernel", ["none", "custom_sdpa"])
@pytest.mark.parametrize("family", ["llama 2", "mistral", "gemma3"])
def test_any_positions_see_what_plain_attention_sees(family: str, kernel: str) -> None:
    layer = make(family).model.layers[0]
    attention, plain = CachedAttention(layer, 20, kernel), Attention(layer)
    generator = torch.Generator().manual_seed(5)
    keys, values = torch.zeros(2, 1, 20, 2, 8)
    for _ in range(20):
        positions = torch.randperm(20, generator=generator)[:6]
        q = torch.randn(1, 6, 4, 8, generator=generator)
        k, v = torch.randn(2, 1, 6, 2, 8, generator=generator)
        keys[:, positions], values[:, positions] = k, v
        expected = plain(q, keys, values, positions)
        torch.testing.assert_close(attention(q, k, v, positions), expected)


def test_positions_beyond_the_rows_are_an_error() -> None:
    attention = CachedAttention(make("llama 2").model.layers[0], 10)
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 2, 8)
    with pytest.raises((RuntimeError, IndexError)):
        attention(q, k, k, torch.tensor([10]))


def test_the_caches_are_the_layers_own_and_are_made_once() -> None:
    model = make("phi3")  # its projections are packed in one
    before = {id(p) for p in model.parameters()}
    prefill, decode = Prefill(model, 16), Decode(model, 16)
    named = dict(model.named_buffers())
    for i, layer in enumerate(model.model.layers):
        for kind in ("key_cache", "value_cache"):
            cache = named[f"model.layers.{i}.self_attn.{kind}"]
            assert cache is getattr(layer.self_attn, kind)
            assert cache.shape == (1, 16, 2, 8)
            for wrapped in (prefill, decode):
                assert any(buffer is cache for buffer in wrapped.buffers())
    assert not any("cache" in key for key in model.state_dict())
    assert {id(p) for p in (*prefill.parameters(), *decode.parameters())} <= before


def test_methods_of_a_layer_must_want_one_cache() -> None:
    layer = make("llama 2").model.layers[0]
    Block(layer, 16)
    with pytest.raises(ModelError) as caught:
        CachedAttention(layer, 17)
    assert str(caught.value) == (
        "the caches of this layer were made with rows 16, head_dim 8 and rotation none, and this "
        "has rows 17, head_dim 8 and rotation none; all methods of a layer share its caches, so "
        "give them the same"
    )
    with pytest.raises(ModelError, match="rotation r3; all methods"):
        Block(layer, 16, rotation="r3")
    with pytest.raises(ModelError, match="rows must be a positive number, not 0"):
        Block(make("llama 2").model.layers[0], 0)


def test_a_decoder_without_a_rotary_embedding_is_told_its_angles() -> None:
    from mmpack.examples.adder.model import Adder, AdderConfig

    torch.manual_seed(3)
    model = Adder(AdderConfig(layers=2)).eval().requires_grad_(False)
    text = torch.randint(0, 256, (1, 20))
    got = read(Prefill(model, 32, head_dim=model.config.head_dim), text)
    torch.testing.assert_close(got, model(text), atol=1e-4, rtol=1e-4)


class TestKernels:
    def test_an_unknown_one(self) -> None:
        with pytest.raises(ModelError, match="no kernel is called 'custom'; did you mean 'custom_"):
            Attention(nn.Identity(), kernel="custom")

    def test_scores_that_are_capped(self) -> None:
        with pytest.raises(ModelError) as caught:
            Attention(make("gemma2").model.layers[0], kernel="custom_sdpa")
        assert str(caught.value) == (
            "scores are capped here (attn_logit_softcapping: 0.5), which custom_sdpa cannot do; "
            "leave `kernel` out"
        )

    def test_scores_that_are_quantized(self) -> None:
        with pytest.raises(ModelError, match="masked_softmax is for scores that are quantized"):
            Attention(nn.Identity(), kernel="custom_sdpa", masked_softmax=True)
