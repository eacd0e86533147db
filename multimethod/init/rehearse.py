"""Whether a decoder computes what its parts show, tried before anybody waits for a build.

The wrappers read a layer's parts; what its `forward` does beyond them (a factor on the residual,
say) they cannot see. So a model of the same configuration, with a layer of each kind and small
where size does not matter, is cut and compared with itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.huggingface.model import draw_decoder
from mmpack.multimethod.init.decoder import Decoder
from mmpack.wrappers.prefill import Prefill

TOKENS, VOCABULARY, WIDTH = 5, 64, 64
MOST = 1e-3
"""Largest difference, relative to the largest logit."""


def rehearse(config: Any, decoder: Decoder) -> None:
    """Raise ModelError if the decoder, cut, gives other logits than whole."""
    small = draw_decoder(_reduced(config, decoder))
    chance = torch.Generator().manual_seed(0)
    for parameter in small.parameters():  # norms too, which would all be ones
        parameter.normal_(0.1, 0.1, generator=chance)
    tokens = torch.arange(1, TOKENS + 1)[None]
    with torch.no_grad():
        whole = small(tokens, use_cache=False).logits
        cut = Prefill(small, rows=TOKENS)(tokens, torch.arange(TOKENS))
    apart = float((whole - cut).abs().max() / whole.abs().max())
    if not apart <= MOST:
        raise ModelError(
            f"{decoder.title} has the parts that the wrappers know, but cut along them it computes "
            f"something else: logits of a small model of this configuration differ by {apart:.1%}. "
            "Expected is a forward of norm, attention, residual, norm, MLP, residual, as Llama has "
            "it (or with norms behind too, as Gemma). A wrapper of your own can cut it: `wrapper: "
            "file.py:Class`, a class whose `__init__` takes the module"
        )


def _reduced(config: Any, decoder: Decoder) -> Any:
    """The configuration with the layers up to the first of the last kind, few tokens and a narrow
    MLP: what is as large as it likes and is computed alike."""
    reduced = copy.deepcopy(config)
    layers = max(kind.first for kind in decoder.kinds) + 1
    reduced.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        reduced.layer_types = list(config.layer_types)[:layers]
    reduced.vocab_size, reduced.intermediate_size = VOCABULARY, WIDTH
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(reduced, name, None)
    return reduced
