"""One decoder cut in every way that `mmpack init` knows: what each costs to build, to store, to
read a prompt with and to write with.

    pytest tests/bench/test_cuts.py --benchmark-only -s

The decoder is as wide as SmolLM2-135M, with a few of its layers and a smaller vocabulary. All
programs run the same tokens in turn, round after round, so that whatever else the machine does
meets all of them; printed are medians, and their ratios to the cut that is one method.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from mmpack.multimethod import Context, build, load
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.init import Cache, Choices, Split, init

from .decoders import smollm2_like

LAYERS, CHUNK, CONTEXT, PROMPT, ANSWER, ROUNDS = 4, 64, 1024, 256, 16, 7
WAYS: list[tuple[Split, Cache]] = [
    ("whole", "fixed"),
    ("block", "fixed"),
    ("qkv/attention/mlp", "fixed"),
    ("qkv/attention/mlp", "dynamic"),
]


def test_cuts(tmp_path: Path, benchmark: Any) -> None:
    config = smollm2_like(LAYERS, 4096, CONTEXT)
    config.save_pretrained(tmp_path)
    weights = sum(p.numel() * p.element_size() for p in _parameters(config))
    rows: dict[str, dict[str, Any]] = {}
    programs: dict[str, Program] = {}
    for split, cache in WAYS:
        spec = tmp_path / f"{split.replace('/', '-')}-{cache}.yaml"
        init(tmp_path / "config.json", spec, Choices(CHUNK, CONTEXT, split, cache))
        began = time.perf_counter()
        report = build(spec, spec.with_suffix(".pte"), cache=tmp_path / spec.stem)
        programs[spec.stem] = load(report.output)
        rows[spec.stem] = {
            "methods": len(report.methods),
            "build": time.perf_counter() - began,
            "size": report.link.size / weights,
        }
    tokens = torch.randint(4096, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    expected = None
    for program in programs.values():  # all compute the same, and are warm
        logits = _read(program, tokens, Context())
        expected = logits if expected is None else expected
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}

    def measure() -> None:
        for _ in range(ROUNDS):
            for name, program in programs.items():
                context = Context()
                start = time.perf_counter()
                _read(program, tokens, context)
                middle = time.perf_counter()
                for i in range(ANSWER):
                    program.flow("decode").run(tokens[:, i : i + 1], context=context)
                times[name].append((middle - start, (time.perf_counter() - middle) / ANSWER))

    benchmark.pedantic(measure, rounds=1, iterations=1)
    for name, row in rows.items():
        row["read"], row["write"] = (statistics.median(t) for t in zip(*times[name], strict=True))
    _print(rows)
    benchmark.extra_info.update(rows)


def _read(program: Program, tokens: torch.Tensor, context: Context) -> torch.Tensor:
    logits: torch.Tensor = program.flow("prefill").run(tokens, context=context).logits
    return logits


def _parameters(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config).parameters()


def _print(rows: dict[str, dict[str, Any]]) -> None:
    base = next(iter(rows.values()))
    table = Table("cut", "methods", "build", "size / weights", "read", "ratio", "write", "ratio")
    for name, row in rows.items():
        table.add_row(
            name,
            str(row["methods"]),
            f"{row['build']:.0f} s",
            f"{row['size']:.3f}",
            f"{row['read'] * 1000:.0f} ms",
            f"{row['read'] / base['read']:.2f}",
            f"{row['write'] * 1000:.1f} ms",
            f"{row['write'] / base['write']:.2f}",
        )
    Console(width=100).print(table)
