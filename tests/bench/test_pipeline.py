"""A prompt read as a pipeline, beside the same program run serially and the model as one method.

    pytest tests/bench/test_pipeline.py --benchmark-only -s [-k 6]

Layers as wide as SmolLM2-135M's with a small vocabulary, so that they are what counts, 6 of them
and all 30; a prompt of 512 tokens in chunks of 64; XNNPACK, on the native engine. All run in turn,
round after round, so that whatever else the machine does meets all of them; printed are medians and
their ratios to the serial run in one thread. The bound of a pipeline is the time of its own calls
on the lane that has most of them, or, where two workers share a lane, half of the time of all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from mmpack.multimethod import build, load
from mmpack.multimethod.flow.execute import Flow
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.flow.trace import Span
from mmpack.multimethod.init import Choices, Split, init

from .decoders import smollm2_like

CHUNK, CONTEXT, PROMPT, ROUNDS = 64, 1024, 512, 9
FINE: Split = "qkv/attention/mlp"


@pytest.mark.parametrize("layers", [6, 30])
def test_pipeline(tmp_path: Path, benchmark: Any, layers: int) -> None:
    config = smollm2_like(layers, 256, CONTEXT)
    config.save_pretrained(tmp_path)
    split, whole = (_built(tmp_path, cut) for cut in (FINE, "whole"))
    any_length = _loaded(_of_any_length(tmp_path), None)
    tokens = torch.randint(256, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    apart, one = _loaded(split, 1), _loaded(whole, 1)
    static = {
        step.method: "cpu" if step.method.startswith("attention") else "npu"
        for step in apart.flow("prefill").plan.steps
    }
    two_lanes = Flow(apart.flow("prefill").plan, apart, static)
    spans: list[Span] = []

    def pipeline(flow: Flow, **workers: int) -> torch.Tensor:
        spans.clear()
        options: Any = {"schedule": "out-of-order", "lanes": workers, "trace": spans}
        logits: torch.Tensor = flow.run(tokens, **options).logits
        return logits

    def serial(program: Program) -> Callable[[], torch.Tensor]:
        return lambda: program.flow("prefill").run(tokens).logits  # type: ignore[no-any-return]

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "cut in three, serial, 1 thread": serial(apart),
        "one method, 1 thread": serial(one),
        "cut in three, serial, 2 threads": serial(_loaded(split, None)),
        "one method, 2 threads": serial(_loaded(whole, None)),
        "one method, the whole prompt at once, 2 threads": lambda: (
            any_length.run_method("read", tokens, torch.arange(PROMPT)).logits
        ),
        "pipeline, projections | attention": lambda: pipeline(two_lanes, npu=1, cpu=1),
        "pipeline, 2 workers of 1 thread": lambda: pipeline(apart.flow("prefill"), cpu=2),
    }
    base = next(iter(ways))
    expected = ways[base]()
    for name, run in ways.items():  # all compute the same, and are warm
        for _ in range(2):
            logits = run()
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
        assert not name.startswith("pipeline") or torch.equal(logits, expected)
    times: dict[str, list[float]] = {name: [] for name in ways}
    over_bound: dict[str, list[float]] = {name: [] for name in ways if "pipeline" in name}

    def measure() -> None:
        for _ in range(ROUNDS):
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
                if name in over_bound:
                    over_bound[name].append(times[name][-1] / _bound(spans))

    benchmark.pedantic(measure, rounds=1, iterations=1)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = {name: median / medians[base] for name, median in medians.items()}
    bounds = {name: statistics.median(t) for name, t in over_bound.items()}
    table = Table(f"{layers} layers, {PROMPT} tokens", "time", "ratio", "over its bound")
    for name, ratio in ratios.items():
        took = f"{medians[name] * 1000:.0f} ms"
        table.add_row(name, took, f"{ratio:.2f}", f"{bounds[name]:.2f}" if name in bounds else "")
    Console(width=100).print(table)
    benchmark.extra_info.update(ratios=ratios, over_bound=bounds)


def _built(folder: Path, cut: Split) -> Path:
    spec = folder / f"{cut.replace('/', '-')}.yaml"
    init(folder / "config.json", spec, Choices(CHUNK, CONTEXT, cut))
    return build(spec, spec.with_suffix(".pte"), jobs=2, cache=folder / "cache").output


ANY_LENGTH = """
from torch import nn
from mmpack.wrappers.attention import Attention as attention
from mmpack.wrappers.embedding import Embedding as embedding
from mmpack.wrappers.lm_head import LmHead as lm_head
from mmpack.wrappers.output_mlp import OutputMlp as output_mlp
from mmpack.wrappers.qkv_proj import QkvProj as qkv_proj
from mmpack.wrappers.rotary import Rotary as rotary
from mmpack.wrappers._visible import visible

class Reads(nn.Module):
    def __init__(self, model):
        super().__init__()
        inner = model.model
        self.embedding, self.rotary = embedding(inner.embed_tokens), rotary(inner.rotary_emb)
        self.qkv = nn.ModuleList(map(qkv_proj, inner.layers))
        self.attention = attention(inner.layers[0], kernel="custom_sdpa")
        self.mlp = nn.ModuleList(map(output_mlp, inner.layers))
        self.lm_head = lm_head(model)

    def forward(self, tokens, positions):
        hidden, (cos, sin) = self.embedding(tokens), self.rotary(positions)
        mask = visible(positions, positions.shape[0], None)
        for qkv, mlp in zip(self.qkv, self.mlp):
            mixed = self.attention.kernel(*qkv(hidden, cos, sin), positions, mask)
            hidden = mlp(hidden, mixed)
        return self.lm_head(hidden)
"""
ANY_LENGTH_SPEC = f"""
mmpack: 1
model: {{huggingface: config.json}}
dims: {{n: {{min: 1, max: {PROMPT}}}}}
targets: {{cpu: {{backend: xnnpack}}}}
methods:
  read:
    module: "."
    wrapper: any_length.py:Reads
    target: cpu
    inputs:
      tokens: {{shape: [1, n], dtype: int64, range: 0..255}}
      positions: {{shape: [n], dtype: int64, range: 0..{PROMPT - 1}}}
    outputs: logits
"""


def _of_any_length(folder: Path) -> Path:
    """The model as one method that reads a prompt of any length at once, and keeps nothing."""
    (folder / "any_length.py").write_text(ANY_LENGTH)
    spec = folder / "any_length.yaml"
    spec.write_text(ANY_LENGTH_SPEC)
    return build(spec, spec.with_suffix(".pte"), cache=folder / "cache").output


def _loaded(path: Path, threads: int | None) -> Program:
    return load(path, engine="native", threads=threads)


def _bound(spans: list[Span]) -> float:
    """Seconds that calls of these lengths take at least: of a lane, or of both workers together."""
    lanes: dict[str, float] = {}
    for span in spans:
        lanes[span.lane] = lanes.get(span.lane, 0.0) + span.end - span.begin
    return max(lanes.values()) if len(lanes) > 1 else sum(lanes.values()) / 2
