"""What a decoder layer is made of, whichever family it comes from.

The wrappers read layers by the names of their parts that Hugging Face's families share, and refuse
one with a part that they do not know: to leave it out would compute something else.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mmpack.multimethod.errors import ModelError

PLAIN = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
"""Llama, Qwen, Mistral, Phi: a norm before attention and one before the MLP."""
SANDWICHED = PLAIN | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
"""Gemma: a norm before and one behind each of them; `post_attention_layernorm` is behind."""
PROJECTIONS = (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"qkv_proj"}))
OPTIONAL = frozenset({"q_norm", "k_norm"})
WITHOUT_EFFECT = (nn.Dropout, nn.Identity)
"""Parts that do nothing in eval mode."""


def is_sandwiched(layer: Any) -> bool:
    """Whether norms stand behind attention and MLP too. Raises ModelError for a layer with other
    parts than the wrappers know."""
    found = _parts(layer)
    if found not in (PLAIN, SANDWICHED):
        raise _unknown(layer, found, f"{_list(PLAIN)}, or {_list(SANDWICHED - PLAIN)} besides")
    return found == SANDWICHED


def attention_of(layer: Any) -> Any:
    """The layer's `self_attn`, whose parts are known: projections apart or packed, `o_proj`, and
    norms of query and key, or none. Raises ModelError for any other."""
    is_sandwiched(layer)
    attention = layer.self_attn
    found = _parts(attention)
    if found - OPTIONAL - {"o_proj"} not in PROJECTIONS or "o_proj" not in found:
        expected = " or ".join(_list(p) for p in PROJECTIONS)
        raise _unknown(attention, found, f"{expected}, with o_proj, q_norm and k_norm")
    if found & OPTIONAL not in (frozenset(), OPTIONAL):
        raise _unknown(attention, found, "both of q_norm and k_norm, or neither")
    return attention


def head_dim_of(attention: Any, given: int | None) -> int:
    """Channels of a head: as given, or as the module itself says. Raises ModelError if neither
    does, or the projections hold no whole number of heads."""
    head_dim = getattr(attention, "head_dim", None) if given is None else given
    if not isinstance(head_dim, int):
        raise ModelError(f"{type(attention).__name__} has no `head_dim`; give it in `args`")
    channels = attention.o_proj.in_features
    if head_dim < 1 or channels % head_dim:
        raise ModelError(
            f"{type(attention).__name__} has {channels} channels of heads, which is no multiple of "
            f"a head_dim of {head_dim}"
        )
    return head_dim


def kv_heads_of(attention: Any, head_dim: int) -> int:
    """Heads of keys, which are as many as those of values."""
    if hasattr(attention, "k_proj"):
        return int(attention.k_proj.out_features) // head_dim
    queries = attention.o_proj.in_features
    return int(attention.qkv_proj.out_features - queries) // (2 * head_dim)


def _parts(module: nn.Module) -> frozenset[str]:
    return frozenset(
        name for name, part in module.named_children() if not isinstance(part, WITHOUT_EFFECT)
    )


def _unknown(module: nn.Module, found: frozenset[str], expected: str) -> ModelError:
    return ModelError(
        f"{type(module).__name__} is not made as the wrappers know it: found {_list(found)}; "
        f"expected {expected}. A wrapper of your own can cut it: `wrapper: file.py:Class`, a class "
        "whose `__init__` takes the module"
    )


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "no parts"
