"""Each wrapper against the plain layers that it was cut from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpack.examples.adder.model import AdderConfig, adder
from mmpack.examples.adder.model import rotary as plain_rotary
from mmpack.multimethod.errors import ModelError
from mmpack.wrappers import find, names
from mmpack.wrappers.attention import Attention
from mmpack.wrappers.embedding import Embedding
from mmpack.wrappers.lm_head import LmHead
from mmpack.wrappers.output_mlp import OutputMlp
from mmpack.wrappers.qkv_proj import QkvProj
from mmpack.wrappers.rotary import Rotary

HEADS = [(6, 2), (4, 4), (8, 1), (9, 3)]


def _model(heads: int, kv_heads: int) -> nn.Module:
    torch.manual_seed(heads)
    model = adder(hidden=48, layers=2, heads=heads, kv_heads=kv_heads, head_dim=8, mlp=64)
    return model.requires_grad_(False)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rotary_gives_the_plain_models_angles(theta: float) -> None:
    positions = torch.tensor([0, 1, 5, 200])
    for got, expected in zip(
        Rotary(nn.Identity(), head_dim=8, theta=theta)(positions),
        plain_rotary(positions, 8, theta),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("length", [1, 2, 13])
def test_pieces_of_a_model_put_together_are_the_model(
    heads: int, kv_heads: int, length: int
) -> None:
    model = _model(heads, kv_heads)
    tokens = torch.randint(256, (1, length))
    positions = torch.arange(length)
    cos, sin = Rotary(model, head_dim=8)(positions)
    hidden = Embedding(model.embed_tokens)(tokens)
    for layer in model.layers:
        q, k, v = QkvProj(layer, head_dim=8)(hidden, cos, sin)
        assert q.shape == (1, length, heads, 8)
        assert k.shape == v.shape == (1, length, kv_heads, 8)
        mixed = Attention(layer)(q, k, v, positions)
        hidden = OutputMlp(layer)(hidden, mixed)
    torch.testing.assert_close(LmHead(model)(hidden), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", [1, 4, 9])
def test_attention_in_chunks_over_a_padded_cache_is_attention_at_once(split: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 10, 6, 8), torch.randn(1, 10, 2, 8), torch.randn(1, 10, 2, 8)
    attention = Attention(nn.Identity())
    whole = attention(q, k, v, torch.arange(10))
    # Rows beyond the last query hold anything: here what comes later, and then large numbers.
    junk = torch.full((1, 6, 2, 8), 1e4)
    for start, stop in ((0, split), (split, 10)):
        positions = torch.arange(start, stop)
        keys, values = torch.cat([k[:, :stop], junk], 1), torch.cat([v[:, :stop], junk], 1)
        piece = attention(q[:, start:stop], keys, values, positions)
        torch.testing.assert_close(piece, whole[:, start:stop])


def test_attention_agrees_with_torchs_own() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 7, 6, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 8)
    expected = nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    got = Attention(nn.Identity())(q, k, v, torch.arange(7))
    torch.testing.assert_close(got, expected.transpose(1, 2).reshape(2, 7, 48))


def test_every_wrapper_is_found_by_its_files_name() -> None:
    assert names() == (
        "attention",
        "embedding",
        "lm_head",
        "output_mlp",
        "qkv_proj",
        "rotary",
    )
    assert find("qkv_proj") is QkvProj
    assert all(issubclass(find(name), nn.Module) for name in names())


def test_an_unknown_wrapper_names_the_nearest() -> None:
    with pytest.raises(
        ModelError, match=r"no wrapper is called 'qkv_porj'; did you mean 'qkv_proj'\?"
    ):
        find("qkv_porj")


def test_the_example_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="cannot share"):
        AdderConfig(heads=6, kv_heads=4)
