"""The block with its cache is the attention half of a plain layer, however the tokens come.

The oracle is the plain code of `examples/adder/model.py`, which reads the whole sequence at once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpack.examples.adder.model import Adder, AdderConfig, rotary
from mmpack.multimethod.errors import ModelError
from mmpack.wrappers.attention_block import AttentionBlock
from mmpack.wrappers.cache_mask import CacheMask

LENGTH, PAST = 12, 16


def model(heads: int = 4, kv_heads: int = 2, head_dim: int = 8, layers: int = 2) -> Adder:
    torch.manual_seed(heads * 10 + kv_heads)
    config = AdderConfig(
        hidden=24,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=40,
        vocab=11,
    )
    made = Adder(config).eval().requires_grad_(False)
    for parameter in made.parameters():  # norms too, which start as ones
        nn.init.normal_(parameter, std=0.3)
    return made


class Caller:
    """What a caller does: it owns a cache of keys and one of values a layer, and feeds the blocks
    piece by piece."""

    def __init__(self, plain: Adder, past: int, **options: Any) -> None:
        config = plain.config
        self.plain = plain
        self.blocks = [AttentionBlock(y, config.head_dim, **options) for y in plain.layers]
        self.mask = CacheMask(plain, past)
        # What was never written may be anything: an older text's rows, say.
        shape = (config.layers, 2, 1, config.kv_heads, past, config.head_dim)
        self.caches = torch.randn(shape) * 3

    def feed(self, tokens: Tensor, start: int, size: int) -> Tensor:
        """Logits of tokens [1, n], given as a piece of `size` whose rest is padding."""
        n = tokens.shape[1]
        padded = torch.cat([tokens, torch.zeros(1, size - n, dtype=torch.int64)], dim=1)
        positions = torch.arange(start, start + size)
        cos, sin = rotary(positions, self.plain.config.head_dim)
        visible = self.mask(positions)
        hidden = self.plain.embed_tokens(padded)
        for layer, block, (k, v) in zip(self.plain.layers, self.blocks, self.caches, strict=True):
            hidden, new_k, new_v = block(hidden, cos, sin, visible, k, v)
            assert new_k.shape == new_v.shape == (*k.shape[:2], size, k.shape[3])
            k[:, :, start : start + n] = new_k[:, :, :n]
            v[:, :, start : start + n] = new_v[:, :, :n]
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: Tensor = self.plain.lm_head(self.plain.norm(hidden))
        return logits[:, :n]


OPTIONS = [
    {},
    {"rotation": "r3"},
    {"masked_softmax": True},
    {"rotation": "r3", "masked_softmax": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("piece", [1, 4, 5, LENGTH])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (4, 4), (1, 1)])
def test_pieces_of_any_size_give_the_logits_of_the_whole(
    heads: int, kv_heads: int, piece: int, options: dict[str, Any]
) -> None:
    plain = model(heads, kv_heads)
    tokens = torch.randint(0, 11, (1, LENGTH), generator=torch.Generator().manual_seed(3))
    caller = Caller(plain, PAST, **options)
    got = [caller.feed(tokens[:, s : s + piece], s, piece) for s in range(0, LENGTH, piece)]
    torch.testing.assert_close(torch.cat(got, dim=1), plain(tokens), atol=1e-5, rtol=1e-5)


def test_a_prompt_in_one_piece_and_then_token_by_token() -> None:
    plain = model()
    tokens = torch.randint(0, 11, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    caller = Caller(plain, PAST)
    got = [caller.feed(tokens[:, :7], 0, 8)]
    got += [caller.feed(tokens[:, s : s + 1], s, 1) for s in range(7, LENGTH)]
    torch.testing.assert_close(torch.cat(got, dim=1), plain(tokens), atol=1e-5, rtol=1e-5)


def test_the_cache_of_a_turned_block_holds_turned_keys_and_plain_values() -> None:
    plain = model()
    tokens = torch.arange(4)[None]
    callers = [Caller(plain, PAST), Caller(plain, PAST, rotation="r3")]
    for caller in callers:
        caller.feed(tokens, 0, 4)
    (k, v), (turned, same) = (caller.caches[0, :, :, :, :4] for caller in callers)
    torch.testing.assert_close(same, v)
    assert (turned - k).abs().max() > 0.1
    torch.testing.assert_close(turned.norm(dim=-1), k.norm(dim=-1))


@pytest.mark.parametrize("head_dim", [6, 12])
def test_a_head_dim_that_is_no_power_of_two_cannot_be_turned(head_dim: int) -> None:
    plain = model(head_dim=head_dim)
    expected = rf"power of two, not {head_dim} \(the nearest are \d+ and \d+\)"
    with pytest.raises(ModelError, match=expected):
        AttentionBlock(plain.layers[0], head_dim, rotation="r3")


def test_the_weights_are_those_of_the_layer_in_the_same_memory() -> None:
    plain = model()
    own = {p.data_ptr() for p in plain.parameters()}
    assert {p.data_ptr() for p in AttentionBlock(plain.layers[0], 8).parameters()} <= own


def test_the_mask_shows_the_cache_so_far_and_the_new_rows_up_to_each() -> None:
    got = CacheMask(nn.Identity(), past=5)(torch.tensor([3, 4]))
    expected = [[1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 1]]
    assert torch.equal(got, torch.tensor(expected, dtype=torch.bool))
