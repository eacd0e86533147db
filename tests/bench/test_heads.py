"""Attention four ways on QNN: as multi-head matmuls, as those converted to single heads by
ExecuTorch (`mha2sha: true`), rewritten by mmpack (`mha2sha: {method: rewrite}`), and written as
single heads at the source.

    pytest tests/bench/test_heads.py --benchmark-only -s

prints what each costs to quantize and lower (seconds of the processor) and what came of it (time
of a call in the simulator, bytes, error of what attention adds to its input), for one block and for
four, at 16a4w on SM8750.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from mmpack.multimethod.targets import BACKENDS

from ..targets.heads import run_heads

SIZES = {"width": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "new": 32, "past": 96}
WAYS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "multi-head, converted": {"mha2sha": True},
    "multi-head, rewritten": {"mha2sha": {"method": "rewrite"}},
    "single-head source": {"form": "single"},
}


@pytest.mark.skipif(
    not BACKENDS["qnn"].available().builds, reason="needs pip install 'mmpack[qnn]'"
)
@pytest.mark.parametrize("blocks", [1, 4])
def test_four_ways(benchmark: Any, tmp_path: Path, blocks: int) -> None:
    common = {"precision": "16a4w", "blocks": blocks, "sizes": SIZES, "calls": 3}
    requests = [{**common, **way} for way in WAYS.values()]
    answers = benchmark.pedantic(run_heads, (tmp_path, *requests), rounds=1, iterations=1)
    table = Table(
        "attention", "quantize", "lower", "run", "size", "error", title=f"{blocks} blocks"
    )
    for way, answer in zip(WAYS, answers, strict=True):
        hidden = answer["inputs"][0]
        error = relative(answer["expected"][0] - hidden, answer["got"][0] - hidden)
        answer["error"] = error
        table.add_row(
            way,
            f"{answer['quantize']:.1f} s",
            f"{answer['lower']:.1f} s",
            f"{answer['run'] * 1000:.0f} ms",
            f"{answer['size'] / 1e6:.2f} MB",
            f"{error:.4f}",
        )
        benchmark.extra_info[way] = {
            name: answer[name] for name in ("quantize", "lower", "run", "size", "error")
        }
    Console().print(table)
    plain, converted, rewritten, _ = answers
    for other in (converted, rewritten):
        assert abs(plain["error"] - other["error"]) < 0.1 * plain["error"]


def relative(expected: torch.Tensor, got: torch.Tensor) -> float:
    """The norm of the error over that of the output."""
    return float(((expected - got).norm() / expected.norm()).detach())
