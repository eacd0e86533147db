"""Small random checkpoints, written as transformers writes them, and a spec that cuts a Llama."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..wrappers.families import make


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, shard: str = "1GB") -> Path:
    """A random decoder of a family, in files of at most `shard`."""
    make(family).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def stream_llama(folder: Path, **sizes: int) -> int:
    """A random Llama in bfloat16, a file a layer, written one after the other, so that no more than
    one is in memory. Gives the bytes of its weights."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": sizes["num_attention_heads"] // 4 or 1,
        "tie_word_embeddings": False,
        **sizes,
    }
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * int(config["num_key_value_heads"])
    names: dict[str, str] = {}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))

    def write(prefix: str, **shapes: tuple[int, ...]) -> int:
        tensors = {
            f"{prefix}{name.replace('__', '.')}.weight": torch.randn(*shape).mul_(0.02).bfloat16()
            if len(shape) > 1
            else torch.ones(*shape, dtype=torch.bfloat16)
            for name, shape in shapes.items()
        }
        file = f"model-{len(set(names.values())):05}.safetensors"
        names.update(dict.fromkeys(tensors, file))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        return sum(tensor.nbytes for tensor in tensors.values())

    torch.manual_seed(0)
    total = write("", model__embed_tokens=(sizes["vocab_size"], hidden), model__norm=(hidden,))
    total += write("", lm_head=(sizes["vocab_size"], hidden))
    for layer in range(sizes["num_hidden_layers"]):
        total += write(
            f"model.layers.{layer}.",
            input_layernorm=(hidden,),
            post_attention_layernorm=(hidden,),
            self_attn__q_proj=(hidden, hidden),
            self_attn__k_proj=(keys, hidden),
            self_attn__v_proj=(keys, hidden),
            self_attn__o_proj=(hidden, hidden),
            mlp__gate_proj=(inner, hidden),
            mlp__up_proj=(inner, hidden),
            mlp__down_proj=(hidden, inner),
        )
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def llama_spec(
    model: str,
    config: Any,
    layers: int,
    chunk: int = 4,
    context: int = 48,
) -> str:
    """A Llama cut in embedding, projections, attention and the rest; its flows run the first so
    many layers, and are compared with the whole model if that has no more."""
    heads, kv_heads, hidden = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["hidden_size"],
    )
    head_dim = config.get("head_dim") or hidden // heads
    vocabulary, sizes = config["vocab_size"], "chunk, one"
    reference = "logits" if layers == config["num_hidden_layers"] else "none"
    text = f"""\
    mmpack: 1
    model: {{huggingface: {model}}}
    dims: {{chunk: {chunk}, one: 1, kv: {{min: {chunk}, max: {context}, step: {chunk}}}}}
    targets: {{cpu: {{backend: xnnpack}}, plain: {{backend: portable}}}}
    methods:
      embedding.{{n}}:
        each: {{n: [{sizes}]}}
        module: model.embed_tokens
        wrapper: embedding
        target: plain
        inputs: {{tokens: {{shape: [1, "{{n}}"], dtype: int64, range: 0..{vocabulary - 1}}}}}
        outputs: hidden
      rotary.{{n}}:
        each: {{n: [{sizes}]}}
        module: model.rotary_emb
        wrapper: rotary
        target: plain
        inputs: {{positions: {{shape: ["{{n}}"], dtype: int64, range: 0..{context - 1}}}}}
        outputs: [cos, sin]
      layers.{{i}}.qkv_proj.{{n}}:
        each: {{i: 0..{layers - 1}, n: [{sizes}]}}
        module: model.layers.{{i}}
        wrapper: qkv_proj
        target: cpu
        inputs:
          hidden: [1, "{{n}}", {hidden}]
          cos: ["{{n}}", {head_dim}]
          sin: ["{{n}}", {head_dim}]
        outputs: [q, k, v]
      attention.{{n}}:
        each: {{n: [{sizes}]}}
        module: model.layers.0
        wrapper: attention
        target: cpu
        inputs:
          q: [1, "{{n}}", {heads}, {head_dim}]
          k: [1, kv, {kv_heads}, {head_dim}]
          v: [1, kv, {kv_heads}, {head_dim}]
          positions: {{shape: ["{{n}}"], dtype: int64, range: 0..{context - 1}}}
        outputs: mixed
      layers.{{i}}.output_mlp.{{n}}:
        each: {{i: 0..{layers - 1}, n: [{sizes}]}}
        module: model.layers.{{i}}
        wrapper: output_mlp
        target: cpu
        inputs: {{hidden: [1, "{{n}}", {hidden}], mixed: [1, "{{n}}", {heads * head_dim}]}}
        outputs: hidden
      lm_head.{{n}}:
        each: {{n: [{sizes}]}}
        module: "."
        wrapper: lm_head
        target: cpu
        inputs: {{hidden: [1, "{{n}}", {hidden}]}}
        outputs: logits
    flow:
    """
    return textwrap.dedent(text) + "".join(
        f"""\
  {name}:
    cut: {{tokens: {n}}}
    steps:
      - embedding.{n}
      - rotary.{n}
      - each: {{i: 0..{layers - 1}}}
        steps:
          - {{run: "layers.{{i}}.qkv_proj.{n}", append: {{k: "keys.{{i}}", v: "values.{{i}}"}}}}
          - {{run: attention.{n}, with: {{k: "keys.{{i}}", v: "values.{{i}}"}}}}
          - {{run: "layers.{{i}}.output_mlp.{n}"}}
      - lm_head.{n}
    outputs: [logits]
    reference: {reference}
"""
        for name, n in (("prefill", "chunk"), ("decode", "one"))
    )
