"""The README's table of precisions: the adder, its projections, MLPs and `lm_head` quantized, or
with `portable` its embedding table.

    pytest tests/bench/test_precision.py --benchmark-only -s

prints one row for each precision: the signal-to-quantization-noise ratio of the worst method and of
the whole prompt, the floor they are held to, bytes of the quantized methods, and how many of 100
held-out sums still come out right. What is asserted are the floors, which the build holds.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.examples.adder import sums
from mmpack.multimethod import Program, build, load
from mmpack.multimethod.targets import BACKENDS

ADDER = Path(__file__).parents[2] / "examples" / "adder"
LAYERS = ("layers.{i}.qkv_proj.{n}", "layers.{i}.output_mlp.{n}", "lm_head.{n}")
QUANTIZED = {"xnnpack": LAYERS, "qnn": LAYERS, "portable": ("embedding.{n}",)}
SUMS, WORKED_EXAMPLES = 100, 6
ROWS = [
    ("xnnpack", "8da8w"),
    ("xnnpack", "8a8w"),
    ("xnnpack", "8da4w"),
    ("qnn", "fp16"),
    ("qnn", "16a8w"),
    ("qnn", "8a8w"),
    ("qnn", "16a4w_block"),
    ("qnn", "16a4w"),
    ("portable", "8w"),
    ("portable", "4w"),
]


def quantized_spec(folder: Path, backend: str, precision: str) -> Path:
    """The adder's spec with a target `quantized`; only what reads a prompt, not what writes."""
    soc = "soc: SM8750, " if backend == "qnn" else ""
    target = f"  quantized: {{backend: {backend}, {soc}precision: {precision}}}\n"
    text = (ADDER / "adder.yaml").read_text()
    text = text.replace("model.py:adder", f"{ADDER / 'model.py'}:adder")
    text = text.replace("adder.safetensors", str(ADDER / "adder.safetensors"))
    calibration = "calibration: mmpack.examples.adder.calibration:prompts\n\n"
    text = text.replace("targets:\n", f"{calibration}targets:\n{target}", 1)
    text = text.replace("n: [chunk, one]", "n: [chunk]")
    text = text[: text.index("  decode:")] + text[text.index("constants:") :]
    for method in QUANTIZED[backend]:
        start = text.index(f"  {method}:")
        kept = "plain" if backend == "portable" else "cpu"
        text = text[:start] + text[start:].replace(f"target: {kept}", "target: quantized", 1)
    path = folder / "adder.yaml"
    path.write_text(text)
    return path


def sums_right(program: Program) -> int:
    """How many held-out sums the program would have ended rightly, each after worked examples; see
    `right` in the adder's `evaluate.py`."""
    flow, rng, count = program.flow("prefill"), random.Random(0), 0
    for question in sums.held_out(SUMS, 1):
        worked = "".join(sums.line(*sums.draw(rng)) for _ in range(WORKED_EXAMPLES))
        text = worked + sums.line(*question)
        tokens = torch.tensor([sums.encode(text)])
        likeliest = flow.run(tokens=tokens).logits.argmax(-1)[0]
        start = text.rindex("=") + 1
        count += torch.equal(likeliest[start - 1 : -1], tokens[0, start:])
    return count


@pytest.mark.parametrize(("backend", "precision"), ROWS)
def test_adder(benchmark: Any, tmp_path: Path, backend: str, precision: str) -> None:
    if not BACKENDS[backend].available().builds:
        pytest.skip(f"needs pip install 'mmpack[{backend}]'")
    spec, output = quantized_spec(tmp_path, backend, precision), tmp_path / "adder.pte"
    report = benchmark.pedantic(
        build, (spec, output), {"jobs": 1, "cache": tmp_path / "cache"}, rounds=1, iterations=1
    )
    program = load(output)
    assert program.manifest is not None
    records = [r for r in program.manifest.methods.values() if r.target == "quantized"]
    assert len(records) == (1 if backend == "portable" else 9)
    kilobytes = sum(record.size for record in records) / 1000
    (prompt,) = report.flows
    row = {"worst": "–", "prompt": "–", "floor": "–"}
    if (floor := BACKENDS[backend].sqnr(BACKENDS[backend].options(records[0].options))) is not None:
        worst = min(record.sqnr for record in records if record.sqnr is not None)
        row = {"worst": worst, "prompt": prompt.sqnr, "floor": floor}
        assert worst >= floor and prompt.sqnr >= floor
        row = {name: f"{value:.0f} dB" for name, value in row.items()}
    row |= {"size": f"{kilobytes:.0f} kB", "sums": str(sums_right(program))}
    benchmark.extra_info.update(row)
    print(f"\n| {backend} `{precision}` | {' | '.join(row.values())} |")
