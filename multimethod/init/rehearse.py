"""Whether a decoder computes what its parts show, tried before anybody waits for a build.

The wrappers read a layer's parts; what its `forward` does beyond them (a factor on the residual,
say) they cannot see. So a model of the same configuration, with a layer of each sort and small
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

TOKENS, VOCABULARY, WIDTH, WINDOW = 5, 64, 64, 3
SPREADS = (0.2, 1.0)
"""Of the weights: small, and attention looks at several tokens; large, and bounds are reached. Both
around 0, since with a mean of their own all tokens become alike, and it does not matter who sees
whom."""
MOST = 1e-3
"""Largest difference, relative to the largest logit."""


def rehearse(config: Any, decoder: Decoder) -> None:
    """Raise ModelError if the decoder, cut, gives other logits than whole."""
    small = draw_decoder(_reduced(config, decoder))
    try:
        apart = [_apart(small, spread) for spread in SPREADS]
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{decoder.title} has the parts that the wrappers know, and a small model of this "
            f"configuration cannot be run with them, or at all: {type(error).__name__}: {error}"
        ) from error
    if not all(difference <= MOST for difference in apart):  # nor is it NaN
        raise ModelError(
            f"{decoder.title} has the parts that the wrappers know, but cut along them it computes "
            "something else: logits of a small model of this configuration differ by "
            f"{max(apart):.1%}. Expected is a forward of norm, attention, residual, norm, MLP, "
            "residual, as Llama has it (or with norms behind too, as Gemma). A wrapper of your "
            "own can cut it: `wrapper: file.py:Class`, a class whose `__init__` takes the module"
        )


def _apart(model: Any, spread: float) -> float:
    """How far logits, cut, are from those of the whole, relative to the largest; or NaN."""
    chance = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # norms too, which would all be ones
        parameter.normal_(0.0, spread, generator=chance)
    tokens = torch.arange(1, TOKENS + 1)[None]
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        cut = Prefill(model, rows=TOKENS)(tokens, torch.arange(TOKENS))
    return float((whole - cut).abs().max() / whole.abs().max())


def _reduced(config: Any, decoder: Decoder) -> Any:
    """The configuration with the layers up to the first of the last sort, few tokens, a narrow
    MLP, and windows that five tokens do not fit into: what is as large as it likes and is computed
    alike."""
    reduced = copy.deepcopy(config)
    reduced.num_hidden_layers = decoder.sample
    if getattr(config, "layer_types", None):
        reduced.layer_types = list(config.layer_types)[: decoder.sample]
    if getattr(config, "sliding_window", None):
        reduced.sliding_window = WINDOW
    reduced.vocab_size, reduced.intermediate_size = VOCABULARY, WIDTH
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(reduced, name, None)
    return reduced
