"""The adder with the projections of its chunks on QNN's simulator and its attention on XNNPACK: a
prompt is read by both at once, and what is written then is what the serial run has written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmpack.examples.adder import sums
from mmpack.examples.adder.evaluate import complete
from mmpack.examples.adder.model import adder
from mmpack.multimethod import build, load
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.flow.trace import Span

from ..targets.qnn import needs_qnn
from .works import BOTH

pytestmark = [needs_qnn, pytest.mark.slow, pytest.mark.usefixtures("native_engine")]

ADDER = Path(__file__).parents[2] / "examples" / "adder"


@pytest.fixture
def both_engines() -> str:
    """Here it is said to `load`."""
    return "native"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Program:
    text = (ADDER / "adder.yaml").read_text()
    text = text.replace(
        "  cpu: {backend: xnnpack}",
        "  cpu: {backend: xnnpack}\n  npu: {backend: qnn, soc: SM8750, precision: fp16}",
    )
    sizes = "each: {i: 0..3, n: [chunk, one]}"
    text = text.replace(sizes, "each: {i: 0..3, n: [chunk, one], t: {cycle: [npu, cpu]}}")
    for wrapper in ("qkv_proj", "output_mlp"):
        text = text.replace(
            f"wrapper: {wrapper}\n    target: cpu", f'wrapper: {wrapper}\n    target: "{{t}}"'
        )
    for name in ("model.py:", "adder.safetensors"):
        text = text.replace(f" {name}", f" {(ADDER / name).resolve()}")
    spec = tmp_path_factory.mktemp("npu") / "adder.yaml"
    spec.write_text(text)
    build(spec, spec.with_suffix(".pte"), jobs=2, cache=build_cache)
    return load(spec.with_suffix(".pte"), engine="native")


def written(program: Program, prompt: str, schedule: str) -> tuple[str, torch.Tensor, list[Span]]:
    """The answer, the logits of the prompt, and what ran when it was read."""
    context, trace = Context(), list[Span]()
    lanes = None if schedule == "serial" else BOTH
    tokens = torch.tensor([sums.encode(prompt)])
    read = program.flow("prefill").run(
        tokens,
        context=context,
        schedule=schedule,  # type: ignore[arg-type]
        lanes=lanes,
        trace=trace,
    )
    made = [int(read.logits[0, -1].argmax())]
    while sums.decode(made)[-1] != "\n" and len(made) < 5:
        step = program.flow("decode").run(torch.tensor([made[-1:]]), context=context)
        made.append(int(step.logits[0, -1].argmax()))
    return sums.decode(made), read.logits, trace


def test_the_answers_are_those_of_the_serial_run(program: Program) -> None:
    lanes = program.flow("prefill").lanes
    for part in ("qkv_proj", "output_mlp"):
        assert {lanes[f"layers.{i}.{part}.chunk"] for i in range(4)} == {"npu"}
    assert lanes["attention.chunk"] == "cpu"
    rng = random.Random(0)
    eager = adder()
    eager.load_state_dict(load_file(ADDER / "adder.safetensors"))
    overlapped = 0
    for worked, pair in zip((0, 1, 4, 9, 12, 16), sums.held_out(6, 0), strict=True):
        prompt = sums.prompt([sums.draw(rng) for _ in range(worked)], pair)
        answer, logits, _ = written(program, prompt, "serial")
        for schedule in ("in-order", "out-of-order"):
            got, others, trace = written(program, prompt, schedule)
            assert got == answer and torch.equal(others, logits)
            overlapped += _overlap(trace)
        assert answer == complete(eager, prompt) == f"{sum(pair)}\n"
    assert overlapped


def _overlap(trace: list[Span]) -> int:
    """How many calls on the NPU ran while one on the CPU did."""
    cpu = [span for span in trace if span.lane == "cpu"]
    return sum(
        any(one.begin < other.end and other.begin < one.end for other in cpu)
        for one in trace
        if one.lane == "npu"
    )
