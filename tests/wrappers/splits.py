"""Specs of decoders of transformers, cut in four ways. `qkv` (projections, attention and the rest
of a layer), `block` (a layer) and `whole` keep their caches themselves; `dynamic` is `qkv` with one
attention for all layers, alike, over caches that the flow lets grow."""

from __future__ import annotations

import json
from typing import Any

MODEL = """
from {families} import make

def made(family):
    model = make(family)
    forward = model.forward
    model.logits = lambda tokens: forward(input_ids=tokens).logits
    return model
"""
SIZES = ("chunk", "one")


def spec_of(
    model: Any,
    split: str,
    factory: dict[str, Any],
    chunk: int,
    rows: int,
    kernel: str,
    sizes: tuple[str, ...] = SIZES,
    backend: str = "xnnpack",
) -> str:
    """A spec, as JSON, which is YAML, with the flows `prefill` and `decode`. Its attention takes
    part on the target `cpu`."""
    decoder, config = model.model, model.config
    layers, width = decoder.layers, config.hidden_size
    head_dim = layers[0].self_attn.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    several = not hasattr(decoder.rotary_emb, "inv_freq")
    kinds = [y.self_attn.layer_type if several else "all" for y in layers]
    methods: dict[str, Any] = {}
    flows: dict[str, list[Any]] = {n: [] for n in sizes}
    positions = {"shape": ["{n}"], "dtype": "int64", "range": [0, rows - 1]}
    tokens = {"shape": [1, "{n}"], "dtype": "int64", "range": [0, config.vocab_size - 1]}
    hidden = [1, "{n}", width]
    fixed = {"rows": rows, "kernel": kernel}

    def method(name: str, inputs: dict[str, Any], outputs: Any, step: Any = None, **more: Any):  # type: ignore[no-untyped-def]
        methods[f"{name}.{{n}}"] = {
            "each": {"n": list(sizes)},
            "inputs": inputs,
            "outputs": outputs,
            "target": "cpu",
            **more,
        }
        for n, steps in flows.items():
            steps.append({"run": f"{name}.{n}", **(step or {})})

    if split == "whole":
        for n, name in zip(sizes, ("prefill", "decode"), strict=False):
            methods[f"model.{n}"] = {
                "module": ".",
                "wrapper": name,
                "args": fixed,
                "target": "cpu",
                "inputs": json.loads(
                    json.dumps({"tokens": tokens, "positions": positions}).replace("{n}", n)
                ),
                "outputs": "logits",
            }
            flows[n].append(f"model.{n}")
    else:
        plain = {"target": "plain"}
        method(
            "embedding",
            {"tokens": tokens},
            "hidden",
            module="model.embed_tokens",
            wrapper="embedding",
            **plain,
        )
        for kind in dict.fromkeys(kinds):
            method(
                f"rotary.{kind}",
                {"positions": positions},
                ["cos", "sin"],
                {"gives": {"cos": f"cos.{kind}", "sin": f"sin.{kind}"}},
                module="model.rotary_emb",
                wrapper="rotary",
                args={"layer_type": kind} if several else {},
                **plain,
            )
        angles = {"cos": ["{n}", head_dim], "sin": ["{n}", head_dim]}
        for i, kind in enumerate(kinds):
            turned = {"with": {"cos": f"cos.{kind}", "sin": f"sin.{kind}"}}
            layer = {"module": f"model.layers.{i}"}
            if split == "block":
                inputs = {"hidden": hidden, **angles, "positions": positions}
                method(f"block.{i}", inputs, "hidden", turned, wrapper="block", args=fixed, **layer)
                continue
            q, kv = [1, "{n}", heads, head_dim], [1, "{n}", kv_heads, head_dim]
            grown = {"k": f"keys.{i}", "v": f"values.{i}"} if split == "dynamic" else {}
            step = {**turned, "append": grown}
            inputs = {"hidden": hidden, **angles}
            method(f"qkv.{i}", inputs, ["q", "k", "v"], step, wrapper="qkv_proj", **layer)
            inputs = {"q": q, "k": kv, "v": kv, "positions": positions}
            if split == "qkv":
                name = f"attention.{i}"
                method(name, inputs, "mixed", wrapper="cached_attention", args=fixed, **layer)
            elif i == 0:
                kv = [1, "kv", kv_heads, head_dim]
                inputs = {"q": q, "k": kv, "v": kv, "positions": positions}
                args = {"kernel": kernel}
                step = {"with": grown}
                method("attention", inputs, "mixed", step, wrapper="attention", args=args, **layer)
            else:
                for n, steps in flows.items():
                    steps.append({"run": f"attention.{n}", "with": grown})
            inputs = {"hidden": hidden, "mixed": [1, "{n}", heads * head_dim]}
            method(f"mlp.{i}", inputs, "hidden", wrapper="output_mlp", **layer)
        method("lm_head", {"hidden": hidden}, "logits", module=".", wrapper="lm_head")
    kept = "shared" if len(sizes) > 1 else "private"
    spec = {
        "mmpack": 1,
        "model": factory,
        "dims": {"chunk": chunk, "one": 1, "kv": {"min": chunk, "max": rows, "step": chunk}},
        "targets": {"cpu": {"backend": backend}, "plain": {"backend": "portable"}},
        "methods": methods,
        "state": {} if split == "dynamic" else {kept: ["*.key_cache", "*.value_cache"]},
        "flow": {
            name: {
                "cut": {"tokens": n},
                "steps": flows[n],
                "outputs": ["logits"],
                "reference": "logits",
            }
            for name, n in zip(("prefill", "decode"), sizes, strict=False)
        },
    }
    return json.dumps(spec, indent=1)
