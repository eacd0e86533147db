"""A Llama checkpoint of Hugging Face's -> a GGUF file, without a tokenizer.

Source: names and metadata as of llama.cpp's conversion of `LlamaForCausalLM`. What a rotation turns
together stands side by side there, half a head apart with Hugging Face.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
KINDS = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """folder: `config.json` and `model.safetensors`. kind: of all matrices, the embedding's too."""
    config = json.loads((folder / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    quantized, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "q_proj" in name:
            tensor = _side_by_side(tensor, heads)
        elif "k_proj" in name:
            tensor = _side_by_side(tensor, groups)
        if tensor.ndim == 1 or kind == "f32":
            writer.add_tensor(_name(name), tensor.astype(numpy.float32))
        else:
            writer.add_tensor(
                _name(name), gguf.quants.quantize(tensor, quantized), raw_dtype=quantized
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _theta(config: dict) -> float:
    return config.get("rope_theta") or config["rope_parameters"]["rope_theta"]


def _side_by_side(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return numpy.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _name(name: str) -> str:
    name = name.removeprefix("model.").removesuffix(".weight")
    whole = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if name in whole:
        return f"{whole[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}.weight"
