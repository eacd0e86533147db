"""SmolLM2-135M's configuration, with random weights, from nothing to text, as a user does it.

    pytest tests/bench/test_smollm2.py --benchmark-only -s

prints how long each command took and the most memory that it, or a process of its, had; and holds
the program to 1.02 times the unique weights and its logits to transformers' within 1e-3.

Source of the configuration: huggingface.co/HuggingFaceTB/SmolLM2-135M, config.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from mmpack.multimethod import Context, load
from mmpack.multimethod.huggingface.model import make_decoder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
PROMPT, WRITTEN = 200, 32


@pytest.mark.parametrize("split", ["qkv/attention/mlp", "block"])
def test_from_nothing(split: str, tmp_path: Path, benchmark: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tokens = torch.randint(49152, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    listed = ",".join(map(str, tokens[0].tolist()))
    steps = {
        "init": ["--hf", "config.json", "--split", split, "-o", "smollm2.yaml"],
        "build": ["smollm2.yaml", "--jobs", "2", "--cache", "cache"],
        "generate": ["smollm2.pte", "--tokens", listed, "--max-tokens", str(WRITTEN)],
    }
    rows = benchmark.pedantic(
        lambda: {name: _run(tmp_path, name, *args) for name, args in steps.items()},
        rounds=1,
        iterations=1,
    )
    model = make_decoder(tmp_path / "config.json")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    size = (tmp_path / "smollm2.pte").stat().st_size
    table = Table(
        "command", "time", "peak memory", title=f"{split}: {size / weights:.4f} x weights"
    )
    for name, row in rows.items():
        table.add_row(name, f"{row['seconds']:.0f} s", f"{row['memory'] / 1e9:.2f} GB")
    Console().print(table)
    print(
        *(line for line in rows["build"]["said"] if line.startswith(("model ", "flow "))), sep="\n"
    )
    print(*rows["generate"]["said"][-1:])
    assert size <= 1.02 * weights

    program, context = load(tmp_path / "smollm2.pte"), Context()
    worst = _apart(program.flow("prefill").run(tokens, context=context).logits, model, tokens)
    for token in map(int, rows["generate"]["said"][0].split(",")):
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        logits = program.flow("decode").run(tokens[:, -1:], context=context).logits
        worst = max(worst, _apart(logits, model, tokens))
    print(f"logits of {PROMPT} tokens read and {WRITTEN} written: {worst:.1e} from transformers'")
    benchmark.extra_info.update(rows, ratio=size / weights, apart=worst)
    assert worst <= 1e-3


def _apart(logits: torch.Tensor, model: Any, tokens: torch.Tensor) -> float:
    """The largest difference to the model's own, of the last tokens of a text."""
    with torch.no_grad():
        expected = model.logits(tokens)[:, -logits.shape[1] :]
    return float((logits - expected).abs().max())


def _run(folder: Path, *command: str) -> dict[str, Any]:
    """Run `mmpack`: its seconds, the most memory that one of its processes had, what it said."""
    script = (
        "import resource, sys\n"
        "from mmpack.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally:\n"
        "    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)\n"
        "    print(max(resource.getrusage(w).ru_maxrss for w in both), file=sys.stderr)\n"
    )
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    *said, memory = run.stderr.splitlines()
    return {
        "seconds": time.perf_counter() - began,
        "memory": int(memory) * 1024,
        "said": [*run.stdout.splitlines(), *said],
    }
