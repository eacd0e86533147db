"""What room for a long text costs a short one: a prompt of 128 tokens read by programs that have
room for 1024 and for 128, in turns, the caches growing in the flow or kept by the methods.

    pytest tests/bench/test_context.py --benchmark-only -s

A Llama of SmolLM2-135M's width with two layers, attention on `custom_sdpa`.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from rich.table import Table

from mmpack.multimethod import Program, build, load

from ..wrappers.splits import spec_of

PROMPT, CHUNK, ROUNDS = 128, 64, 25
MOST = 1.15
CONFIG = {
    "vocab_size": 2048,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
MODEL = """
import torch, transformers
def made(**config):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    forward = model.forward
    model.logits = lambda tokens: forward(input_ids=tokens).logits
    return model
"""


def program(folder: Path, cache: Path, split: str, rows: int) -> Program:
    (folder / "model.py").write_text(MODEL)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    factory = {"factory": "model.py:made", "args": CONFIG}
    spec = folder / f"{split}.{rows}.yaml"
    spec.write_text(spec_of(model, split, factory, CHUNK, rows, "custom_sdpa", ("chunk",)))
    build(spec, spec.with_suffix(".pte"), jobs=2, cache=cache)
    return load(spec.with_suffix(".pte"))


@pytest.mark.parametrize("split", ["dynamic", "qkv", "whole"])
def test_room_that_is_not_used(
    benchmark: Any, tmp_path: Path, build_cache: Path, split: str
) -> None:
    flows = {n: program(tmp_path, build_cache, split, n).flow("prefill") for n in (1024, 128)}
    text = torch.randint(0, CONFIG["vocab_size"], (1, PROMPT))

    def rounds() -> dict[int, list[float]]:
        took: dict[int, list[float]] = {rows: [] for rows in flows}
        for _ in range(ROUNDS):
            for rows, flow in flows.items():
                start = time.perf_counter()
                flow.run(text)
                took[rows].append(time.perf_counter() - start)
        return took

    rounds()
    took = benchmark.pedantic(rounds, rounds=1, iterations=1)
    middle = {rows: statistics.median(times) * 1e3 for rows, times in took.items()}
    ratio = middle[1024] / middle[128]
    table = Table("caches", "room for 1024", "room for 128", "ratio")
    table.add_row(split, f"{middle[1024]:.1f} ms", f"{middle[128]:.1f} ms", f"{ratio:.2f}")
    Console().print(table)
    benchmark.extra_info.update(split=split, ratio=ratio)
    assert ratio <= MOST
