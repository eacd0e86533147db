"""The methods of a language model's spec, for each way to cut it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmpack.multimethod.init.choices import Choices
from mmpack.multimethod.init.decoder import Decoder, Kind
from mmpack.multimethod.init.yaml_text import Lines, pairs


def methods(decoder: Decoder, choices: Choices) -> Iterable[Lines]:
    sizes = "[chunk, one]" if choices.chunk > 1 else "[one]"
    tokens = _tokens("{n}", decoder)
    if choices.split == "whole":
        yield from _whole(decoder, choices)
        return
    yield _method(
        "embedding.{n}",
        each=f"{{n: {sizes}}}",
        module="model.embed_tokens",
        wrapper="embedding",
        target="plain",
        precision=choices.embedding,
        inputs={"tokens": tokens},
        outputs="hidden",
    )
    for kind in rotary_kinds(decoder):
        yield _method(
            f"{_of('rotary', kind, decoder.several_rotary)}.{{n}}",
            each=f"{{n: {sizes}}}",
            module="model.rotary_emb",
            wrapper="rotary",
            args={"layer_type": kind.layer_type} if kind.layer_type else {},
            target="plain",
            inputs={"positions": _positions("{n}", choices)},
            outputs="[cos, sin]",
        )
    layers = f"{{i: 0..{decoder.layers - 1}, n: {sizes}}}"
    static = "npu" if choices.npu is not None else "cpu"
    hidden = f'[1, "{{n}}", {decoder.hidden}]'
    angles = f'["{{n}}", {decoder.rotary}]'
    if choices.split == "block":
        yield _method(
            "layers.{i}.block.{n}",
            each=layers,
            module="model.layers.{i}",
            wrapper="block",
            args=_cache_args(decoder.kinds, choices),
            target=static,
            inputs={
                "hidden": hidden,
                "cos": angles,
                "sin": angles,
                "positions": _positions("{n}", choices),
            },
            outputs="hidden",
        )
    else:
        yield _method(
            "layers.{i}.qkv_proj.{n}",
            each=layers,
            module="model.layers.{i}",
            wrapper="qkv_proj",
            target=static,
            inputs={"hidden": hidden, "cos": angles, "sin": angles},
            outputs="[q, k, v]",
        )
        yield from _attention(decoder, choices, sizes)
        yield _method(
            "layers.{i}.output_mlp.{n}",
            each=layers,
            module="model.layers.{i}",
            wrapper="output_mlp",
            target=static,
            inputs={
                "hidden": hidden,
                "mixed": f'[1, "{{n}}", {decoder.heads * decoder.head_dim}]',
            },
            outputs="hidden",
        )
    yield _method(
        "lm_head.{n}",
        each=f"{{n: {sizes}}}",
        module='"."',
        wrapper="lm_head",
        target=static,
        inputs={"hidden": hidden},
        outputs="logits",
    )


def _attention(decoder: Decoder, choices: Choices, sizes: str) -> Iterable[Lines]:
    def rows(heads: int, length: str) -> str:
        return f"[1, {length}, {heads}, {decoder.head_dim}]"

    target = attention_target(choices)
    assert target is not None
    new = '"{n}"'
    if choices.fixed:
        yield _method(
            "layers.{i}.attention.{n}",
            comment="with the layer's cache",
            each=f"{{i: 0..{decoder.layers - 1}, n: {sizes}}}",
            module="model.layers.{i}",
            wrapper="cached_attention",
            args=_cache_args(decoder.kinds, choices),
            target=target,
            inputs={
                "q": rows(decoder.heads, new),
                "k": rows(decoder.kv_heads, new),
                "v": rows(decoder.kv_heads, new),
                "positions": _positions("{n}", choices),
            },
            outputs="mixed",
        )
        return
    for kind in decoder.kinds:
        several = len(decoder.kinds) > 1
        comment = "no weights: one method serves all layers"
        comment += " of its kind" if several else ""
        if kind.window is not None:
            comment += f"; a token sees the last {kind.window}"
        yield _method(
            f"{_of('attention', kind, several)}.{{n}}",
            comment=comment,
            each=_each_size(kind, choices, sizes),
            module=f"model.layers.{kind.first}",
            wrapper="attention",
            args={} if kind.capped else {"kernel": _kernel(choices)},
            target=target,
            inputs={
                "q": rows(decoder.heads, new),
                "k": rows(decoder.kv_heads, "kv"),
                "v": rows(decoder.kv_heads, "kv"),
                "positions": _positions("{n}", choices),
            },
            outputs="mixed",
        )


def _whole(decoder: Decoder, choices: Choices) -> Iterable[Lines]:
    for name, size in (("prefill", "chunk"), ("decode", "one")):
        if name == "prefill" and choices.chunk == 1:
            continue
        yield _method(
            name,
            module='"."',
            wrapper=name,
            args=_cache_args(decoder.kinds, choices),
            target="npu" if choices.npu is not None else "cpu",
            inputs={
                "tokens": _tokens(size, decoder),
                "positions": _positions(size, choices),
            },
            outputs="logits",
        )


def _method(
    name: str,
    *,
    module: str,
    wrapper: str,
    target: str,
    inputs: Mapping[str, str],
    outputs: str,
    each: str | None = None,
    args: Mapping[str, Any] | None = None,
    precision: str | None = None,
    comment: str | None = None,
) -> Lines:
    lines = [f"{name}:" + (f" # {comment}" if comment else "")]
    if each is not None:
        lines.append(f"  each: {each}")
    lines += [f"  module: {module}", f"  wrapper: {wrapper}"]
    if args:
        lines.append(f"  args: {{{pairs(args)}}}")
    lines.append(f"  target: {target}")
    if precision is not None:
        lines.append(f"  precision: {precision} # the table; what it gives is float32")
    lines.append("  inputs:")
    lines += [f"    {key}: {value}" for key, value in inputs.items()]
    return [*lines, f"  outputs: {outputs}"]


def _tokens(size: str, decoder: Decoder) -> str:
    shown = f'"{size}"' if "{" in size else size
    return f"{{shape: [1, {shown}], dtype: int64, range: 0..{decoder.vocabulary - 1}}}"


def _positions(size: str, choices: Choices) -> str:
    shown = f'"{size}"' if "{" in size else size
    return f"{{shape: [{shown}], dtype: int64, range: 0..{choices.context - 1}}}"


def _each_size(kind: Kind, choices: Choices, sizes: str) -> str:
    """With the fastest kernel for each: products of matrices for a chunk, ExecuTorch's fused
    attention, which knows no bounded scores, for a token."""
    if kind.capped or choices.chunk == 1:
        return f"{{n: {sizes}}}"
    return f"{{n: {sizes}, kernel: {{cycle: [grouped, custom_sdpa]}}}}"


def _kernel(choices: Choices) -> str:
    return "custom_sdpa" if choices.chunk == 1 else '"{kernel}"'


def _cache_args(kinds: Iterable[Kind], choices: Choices) -> dict[str, Any]:
    args: dict[str, Any] = {"rows": choices.context}
    on_npu = choices.npu is not None and choices.split != "qkv/attention/mlp"
    if not on_npu and not any(kind.capped for kind in kinds):
        args["kernel"] = "custom_sdpa"
    return args


def attention_target(choices: Choices) -> str | None:
    """Where attention goes that is a method of its own: it has no weights to quantize."""
    if choices.split != "qkv/attention/mlp":
        return None
    return "float" if choices.cpu.quantized else "cpu"


def rotary_kinds(decoder: Decoder) -> list[Kind]:
    """One kind for each set of rotary frequencies."""
    return list({kind.layer_type: kind for kind in reversed(decoder.kinds)}.values())[::-1]


def _of(name: str, kind: Kind, several: bool) -> str:
    return f"{name}.{kind.name}" if several else name
