"""What a decoder is made of, read from its modules: sizes, and kinds of layers that attend alike.

The wrappers themselves say whether they can cut it, on a model without memory for its weights.
"""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from torch import nn

from mmpack.multimethod.errors import ModelError
from mmpack.wrappers.attention import Attention
from mmpack.wrappers.lm_head import LmHead
from mmpack.wrappers.output_mlp import OutputMlp
from mmpack.wrappers.qkv_proj import QkvProj
from mmpack.wrappers.rotary import Rotary, layer_type_of

BODY = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})
WHOLE = frozenset({"model", "lm_head"})


@frozen
class Kind:
    """Layers that attend alike. name: `sliding`, `full`; layer_type: whose rotary frequencies they
    take, where the decoder has several; window: how many keys a query sees; capped: whether scores
    are bounded; first: the number of the first such layer."""

    name: str
    layer_type: str | None
    window: int | None
    capped: bool
    first: int


@frozen
class Decoder:
    """title: the model's class. rotary: channels of a head that are turned. order: the name of
    each layer's kind."""

    title: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    vocabulary: int
    kinds: tuple[Kind, ...]
    order: tuple[str, ...]
    sample: int
    """How many layers, from the first on, have one of each sort among them: of layers with other
    parts than those before, or other numbers and switches in them."""
    longest: int | None = field(default=None)
    """Tokens of the longest text for which the model's rotary frequencies hold; None: any."""

    @property
    def layers(self) -> int:
        return len(self.order)

    @property
    def several_rotary(self) -> bool:
        """Whether kinds take frequencies of their own."""
        return any(kind.layer_type is not None for kind in self.kinds)


def read_decoder(model: Any) -> Decoder:
    """What a Hugging Face decoder is made of; it may be on the device `meta`.

    Raises ModelError, with what was found and what was expected, for one that the wrappers cannot
    cut.
    """
    _require_parts(model, WHOLE)
    body = model.model
    _require_parts(body, BODY)
    layers, config = body.layers, model.config
    hidden, vocabulary = model.lm_head.in_features, model.lm_head.out_features
    LmHead(model)
    kinds: dict[tuple[Any, ...], Kind] = {}
    order = []
    shapes: dict[tuple[int, ...], int] = {}
    sorts: dict[tuple[Any, ...], int] = {}
    for number, layer in enumerate(layers):
        attention, projections = Attention(layer), QkvProj(layer)
        OutputMlp(layer)
        own_type = layer_type_of(body.rotary_emb, layer)
        rotary = Rotary(body.rotary_emb, layer_type=own_type)
        heads = projections.heads, projections.kv_heads, projections.head_dim
        shapes.setdefault((*heads, 2 * len(rotary.frequencies)), number)
        sorts.setdefault(_sort(layer), number)
        scores = attention.scores
        key = (own_type, attention.window, scores.cap, scores.scaling)
        if key not in kinds:
            name = _name(attention.window, own_type, [k.name for k in kinds.values()])
            kinds[key] = Kind(name, own_type, attention.window, scores.cap is not None, number)
        order.append(kinds[key].name)
    if not order:
        raise ModelError(f"{type(model).__name__} has no layers, by its configuration")
    if len(shapes) != 1:
        found = ", ".join(f"{list(s)} from layer {n} on" for s, n in shapes.items())
        raise ModelError(
            f"the layers of {type(model).__name__} differ in heads, heads of keys, channels of a "
            f"head, or channels that are turned: {found}. Expected all alike; write the "
            "methods of such a model by hand"
        )
    ((query_heads, kv_heads, head_dim, turned),) = shapes
    return Decoder(
        title=type(model).__name__,
        hidden=hidden,
        heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary=turned,
        vocabulary=vocabulary,
        kinds=tuple(kinds.values()),
        order=tuple(order),
        sample=max(sorts.values()) + 1,
        longest=_longest(config),
    )


def _require_parts(module: nn.Module, expected: frozenset[str]) -> None:
    found = frozenset(name for name, _ in module.named_children())
    if found != expected:
        raise ModelError(
            f"{type(module).__name__} is not made as the wrappers know it: found "
            f"{', '.join(sorted(found))}; expected {', '.join(sorted(expected))}. A spec by hand "
            "can cut it, with wrappers of your own: `wrapper: file.py:Class`, a class whose "
            "`__init__` takes the module that `module:` names, and whose `forward` has the inputs "
            "of the method"
        )


def _sort(layer: nn.Module) -> tuple[Any, ...]:
    """The parts of a layer, and what each says of itself besides the layer's number. No wrapper
    reads `use_rope`, say, which some layers of a model have and others have not."""
    return tuple(
        (name, type(module), key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if key != "layer_idx" and isinstance(value, bool | int | float | str | None)
    )


def _name(window: int | None, layer_type: str | None, taken: list[str]) -> str:
    name = layer_type.removesuffix("_attention") if layer_type else "full"
    name = "sliding" if window is not None and layer_type is None else name
    count = sum(other.rstrip("0123456789") == name for other in taken)
    return f"{name}{count + 1}" if count else name


def _longest(config: Any) -> int | None:
    """Frequencies of some kinds change with the text's length; ours are those of short texts."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    longest: int | None = getattr(config, "max_position_embeddings", None)
    for each in nested:
        # The last scales queries, by steps of that length (Ministral 3).
        grows = each.get("rope_type") in ("longrope", "dynamic") or "llama_4_scaling_beta" in each
        if grows:
            original = each.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min((n for n in (longest, original) if n is not None), default=None)
    return longest
