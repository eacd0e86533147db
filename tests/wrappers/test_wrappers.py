"""The wrappers, put together again, are the layers of a plain model.

The oracle is the plain code of `examples/adder/model.py`, which knows nothing of wrappers, and for
attention also PyTorch's own.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmpack.examples.adder.model import Adder, AdderConfig, rotary
from mmpack.multimethod.errors import ModelError
from mmpack.wrappers import find, names
from mmpack.wrappers._softmax import visible_softmax
from mmpack.wrappers.attention import Attention
from mmpack.wrappers.embedding import Embedding
from mmpack.wrappers.lm_head import LmHead
from mmpack.wrappers.output_mlp import OutputMlp
from mmpack.wrappers.qkv_proj import QkvProj
from mmpack.wrappers.rotary import Rotary


def model(heads: int, kv_heads: int, head_dim: int = 8, hidden: int = 24) -> Adder:
    torch.manual_seed(heads * 10 + kv_heads)
    config = AdderConfig(
        hidden=hidden, layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp=40, vocab=11
    )
    made = Adder(config).eval().requires_grad_(False)
    for parameter in made.parameters():  # norms too, which start as ones
        nn.init.normal_(parameter, std=0.3)
    return made


GROUPS = [(1, 1), (4, 4), (6, 2), (9, 3), (8, 1)]


@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (3, 5)])
def test_projections_attention_and_mlp_are_a_layer(
    heads: int, kv_heads: int, batch: int, length: int
) -> None:
    plain = model(heads, kv_heads)
    layer = plain.layers[0]
    hidden = torch.randn(batch, length, 24)
    positions = torch.arange(length)
    cos, sin = Rotary(plain, head_dim=8)(positions)
    q, k, v = QkvProj(layer, head_dim=8)(hidden, cos, sin)
    assert q.shape == (batch, length, heads, 8)
    assert k.shape == v.shape == (batch, length, kv_heads, 8)
    mixed = Attention(layer)(q, k, v, positions)
    got = OutputMlp(layer)(hidden, mixed)
    torch.testing.assert_close(got, layer(hidden, *rotary(positions, 8)))


@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
@pytest.mark.parametrize("head_dim", [2, 8, 64])
def test_turned_query_and_key_give_what_plain_ones_give(
    heads: int, kv_heads: int, head_dim: int
) -> None:
    plain = model(heads, kv_heads, head_dim)
    layer = plain.layers[0]
    hidden, positions = torch.randn(1, 5, 24), torch.arange(5)
    cos, sin = rotary(positions, head_dim)
    q, k, v = QkvProj(layer, head_dim)(hidden, cos, sin)
    turned_q, turned_k, same_v = QkvProj(layer, head_dim, rotation="r3")(hidden, cos, sin)
    assert torch.equal(v, same_v)
    assert (turned_k - k).abs().max() > 0.1
    torch.testing.assert_close(turned_k.norm(dim=-1), k.norm(dim=-1))
    got = Attention(layer, rotation="r3")(turned_q, turned_k, v, positions)
    torch.testing.assert_close(got, Attention(layer)(q, k, v, positions), atol=1e-5, rtol=0)


def test_turning_spreads_an_outlier_over_all_channels() -> None:
    layer = model(2, 1, head_dim=64).layers[0]
    layer.self_attn.k_proj.weight[5] *= 100
    cos, sin = torch.ones(3, 64), torch.zeros(3, 64)
    hidden = torch.randn(1, 3, 24)
    _, k, _ = QkvProj(layer, 64)(hidden, cos, sin)
    _, turned, _ = QkvProj(layer, 64, rotation="r3")(hidden, cos, sin)

    def peak(x: torch.Tensor) -> torch.Tensor:
        return (x.abs().amax(-1) / x.square().mean(-1).sqrt()).min()

    assert peak(k) > 7 and peak(turned) < 2


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("start", "new", "beyond"), [(0, 4, 0), (3, 4, 9), (0, 1, 2000)])
def test_masked_softmax_gives_the_same_probabilities(
    start: int, new: int, beyond: int, scale: float
) -> None:
    length, positions = start + new + beyond, torch.arange(start, start + new)
    q, k, v = torch.randn(1, new, 2, 8) * scale, *torch.randn(2, 1, length, 1, 8)
    visible = torch.arange(length) <= positions[:, None]
    scores = q.transpose(1, 2) @ k.transpose(1, 2).transpose(-2, -1) * 8**-0.5
    oracle = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    for masked in (True, False):
        got = visible_softmax(scores, visible, masked)
        torch.testing.assert_close(got, oracle, atol=1e-6, rtol=0)
    mixed = (oracle @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
    attention = Attention(nn.Identity(), masked_softmax=True)
    torch.testing.assert_close(attention(q, k, v, positions), mixed)


def test_masked_softmax_keeps_the_scores_in_a_narrow_range() -> None:
    scores = torch.randn(2, 6, 6)
    seen: list[torch.Tensor] = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.Tensor.softmax:
                seen.append(args[0])
            return func(*args, **(kwargs or {}))

    visible = torch.ones(6, 6).tril().bool()
    with Spy():
        visible_softmax(scores, visible, masked=True)
        visible_softmax(scores, visible, masked=False)
    narrow, wide = (float(s.max() - s.min()) for s in seen)
    assert narrow < 40 < 1000 < wide


def test_a_rotation_that_there_is_not_and_a_head_dim_that_has_none() -> None:
    layer = model(2, 1, head_dim=12).layers[0]
    with pytest.raises(ModelError, match="no rotation is called 'r4'; known: r3"):
        QkvProj(layer, 12, rotation="r4")
    with pytest.raises(ModelError, match="no rotation is called 'R3'"):
        Attention(layer, rotation="R3")
    with pytest.raises(ModelError, match=r"not 12 \(the nearest are 8 and 16\)"):
        QkvProj(layer, 12, rotation="r3")


@pytest.mark.parametrize("head_dim", [2, 8, 16])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_rotary_gives_the_angles_of_any_positions(head_dim: int, theta: float) -> None:
    positions = torch.tensor([0, 5, 5, 200, 3])
    got = Rotary(nn.Identity(), head_dim, theta)(positions)
    torch.testing.assert_close(got, rotary(positions, head_dim, theta))


def test_the_ends_are_the_models() -> None:
    plain = model(2, 1)
    tokens = torch.tensor([[3, 0, 10]])
    torch.testing.assert_close(Embedding(plain.embed_tokens)(tokens), plain.embed_tokens(tokens))
    hidden = torch.randn(1, 3, 24)
    torch.testing.assert_close(LmHead(plain)(hidden), plain.lm_head(plain.norm(hidden)))


@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
@pytest.mark.parametrize(("start", "new", "beyond"), [(0, 4, 0), (3, 4, 0), (9, 1, 6), (2, 5, 9)])
def test_attention_is_pytorchs_own_over_the_rows_so_far(
    heads: int, kv_heads: int, start: int, new: int, beyond: int
) -> None:
    q = torch.randn(2, new, heads, 8)
    k, v = torch.randn(2, 2, start + new + beyond, kv_heads, 8)
    positions = torch.arange(start, start + new)
    mask = torch.arange(start + new + beyond) <= positions[:, None]
    oracle = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask, enable_gqa=True
    )
    got = Attention(nn.Identity())(q, k, v, positions)
    torch.testing.assert_close(got, oracle.transpose(1, 2).reshape(2, new, heads * 8))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(0, 30), st.integers(1, 9))
def test_rows_beyond_the_last_query_do_not_count(new: int, beyond: int, scale: int) -> None:
    q, positions = torch.randn(1, new, 2, 4), torch.arange(new)
    k = torch.randn(1, new + beyond, 1, 4)
    other = k.clone()
    other[:, new:] = float(scale) * 1000
    attend = Attention(nn.Identity())
    assert torch.equal(attend(q, k, k, positions), attend(q, other, other, positions))


def test_wrappers_keep_the_weights_that_they_were_given() -> None:
    plain = model(2, 1)
    own = {id(p) for p in plain.parameters()}
    for wrapper in (
        QkvProj(plain.layers[0], head_dim=8),
        OutputMlp(plain.layers[0]),
        LmHead(plain),
    ):
        assert {id(p) for p in wrapper.parameters()} <= own
    assert not list(Attention(plain).parameters())
    assert not list(Rotary(plain, head_dim=8).parameters())


def test_every_file_is_a_wrapper_and_is_found_by_its_name() -> None:
    found: dict[str, Any] = {name: find(name) for name in names()}
    assert len(found) > 5
    for name, wrapper in found.items():
        assert issubclass(wrapper, nn.Module)
        assert wrapper is getattr(
            importlib.import_module(f"mmpack.wrappers.{name}"), wrapper.__name__
        )


def test_a_name_that_is_no_wrapper_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match="no wrapper is called 'qkv_pro'; did you mean 'qkv_proj'"):
        find("qkv_pro")
