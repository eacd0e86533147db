"""Quantized methods, run and held against eager PyTorch by a formula of these tests' own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mmpack.multimethod.errors import CompileError, VerifyError
from mmpack.multimethod.link import PteFile, read_manifest
from mmpack.multimethod.report.inspection import inspect
from mmpack.multimethod.verify.program import verify

MODEL = """
class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantizer = nn.Parameter(torch.ones(40))  # a name that must not pass for an operator
    def forward(self, x):
        return torch.relu(x * self.quantizer)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 192, bias=False), nn.Linear(192, 64)
        self.relu = nn.ReLU()
        self.odd = nn.Linear(40, 64)
        self.vector = Vector()
    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.up(x))), x + 1

class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.register_buffer("total", torch.zeros(1, 64))
    def forward(self, x):
        self.total.add_(self.linear(x))
        return self.total * 1.0

class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.counter = Counter()
    def forward(self, x):
        return self.counter(x)

def examples():
    generator = torch.Generator().manual_seed(3)
    for i in range(8):
        yield {"x": torch.randn(1, 4 + i, 64, generator=generator)}

def rows():
    generator = torch.Generator().manual_seed(3)
    for i in range(8):
        yield torch.rand(1, 64, generator=generator)
"""
NOTES = """
class Board(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.out = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.register_buffer("rows", torch.zeros(8, 32))
    def put(self, x):
        self.rows.copy_(torch.relu(self.up(x)) * 5)
        return self.rows * 1.0
    def get(self, y):
        return self.out(torch.relu(self.down(self.rows) + y * 0.1))

class Notes(nn.Module):
    def __init__(self):
        super().__init__()
        self.board = Board()
    def forward(self, x, y):
        self.board.put(x)
        return self.board.get(y)

def pairs():
    generator = torch.Generator().manual_seed(3)
    for _ in range(8):
        yield torch.randn(8, 32, generator=generator), torch.randn(8, 64, generator=generator)
"""
SPEC = """
dims: {n: {min: 1, max: 32}}
calibration: model.py:examples
methods:
  f: {module: ".", target: cpu, precision: PRECISION, inputs: {x: [1, n, 64]}, outputs: [y, z]}
"""
WEIGHTS = 2 * 64 * 192
"""How many numbers the two large weights have."""
EXPECTED = {
    # precision -> least ratio in dB, bytes for a weight, kinds of what is at the ends
    "8a8w": (25.0, 1.0, ["input", "output", "output"]),
    "8da8w": (35.0, 1.0, []),
    "8da4w": (15.0, 0.5 + 4 / 32, []),
}


def ratio(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    signal = sum(float((e.double() ** 2).sum()) for e in expected)
    noise = sum(float(((e.double() - g) ** 2).sum()) for e, g in zip(expected, got, strict=True))
    return 10 * math.log10(signal / noise) if noise else math.inf


def record(project: Any, method: str = "f") -> Any:
    with PteFile.open(project.output) as file:
        manifest = read_manifest(file)
        assert manifest is not None
        return manifest.methods[method]


@pytest.mark.parametrize("precision", EXPECTED)
def test_a_quantized_method_computes_what_the_model_does_in_fewer_bits(
    project: Any, precision: str
) -> None:
    least, width, ends = EXPECTED[precision]
    project.model(MODEL).spec(SPEC.replace("PRECISION", precision))
    program = project.program()
    model = project.load_model()
    generator = torch.Generator().manual_seed(11)
    inputs = [torch.randn(1, n, 64, generator=generator) for n in (1, 7, 32)]
    expected = [model(x) for x in inputs]
    got = [program.run_method("f", x) for x in inputs]
    assert not torch.allclose(got[1].y, expected[1][0], rtol=1e-4, atol=1e-4)
    assert ratio([e[0] for e in expected], [g.y for g in got]) > least
    assert ratio([e[1] for e in expected], [g.z for g in got]) > least

    made = record(project)
    assert made.options["precision"] == precision
    assert made.sqnr > made.least_sqnr > 0 and made.tolerance is None
    assert [kind for kind, _, _ in made.scales] == ends
    # What is left is scales, sums of weights and the graph.
    assert WEIGHTS * width < made.size < WEIGHTS * width + 12_000
    with PteFile.open(project.output) as file:
        assert max(s.size for s in file.segments) < WEIGHTS * 4


def test_scales_are_those_of_the_recorded_ranges(project: Any) -> None:
    project.model(MODEL).spec(SPEC.replace("PRECISION", "8a8w"))
    project.build()
    generator = torch.Generator().manual_seed(3)
    samples = [torch.randn(1, 4 + i, 64, generator=generator) for i in range(8)]
    kept = torch.cat([s for i, s in enumerate(samples) if i not in (3, 7)], 1)
    low, high = float(kept.min()), float(kept.max())
    scales = {(kind, name): found for kind, name, found in record(project).scales}
    for end, shift in ((("input", "x"), 0.0), (("output", "z"), 1.0)):
        (scale,) = scales[end]
        assert (scale.low, scale.high, scale.dtype) == (-128, 127, "int8")
        assert scale.scale == pytest.approx((high - low) / 255, rel=1e-5)
        # 8-bit integers from -128 stand for values from `low` on.
        zero = -128 - round((low + shift) / scale.scale)
        assert abs(scale.zero_point - zero) <= 1
    told = str(inspect(project.output))
    assert f"input x: int8 -128..127, scale {scales['input', 'x'][0].scale:.6g}" in told
    assert "8a8w" in told and " dB" in told


def test_a_method_below_its_ratio_is_not_shipped(project: Any) -> None:
    spec = SPEC.replace("PRECISION", "8da4w, sqnr: 60")
    project.model(MODEL).spec(spec)
    with pytest.raises(VerifyError) as raised:
        project.build()
    assert "f: output 'y'" in str(raised.value) and "at least 60.0 dB is wanted" in str(
        raised.value
    )
    assert not project.output.exists()


def test_a_program_is_verified_with_recorded_inputs(project: Any) -> None:
    project.model(MODEL).spec(SPEC.replace("PRECISION", "8a8w"))
    project.build()
    checked = verify(project.output, project.path).methods["f"]
    assert checked.sqnr == pytest.approx(record(project).sqnr, abs=0.5)
    project.model(MODEL.replace("+ 1", "+ 2"))
    with pytest.raises(VerifyError, match="output 'z'"):
        verify(project.output, project.path)


def test_a_dynamic_precision_needs_no_examples(project: Any) -> None:
    spec = SPEC.replace("PRECISION", "8da8w").replace("calibration: model.py:examples\n", "")
    project.model(MODEL).spec(spec)
    project.build()
    assert record(project).sqnr > 35


def test_state_is_what_the_model_has_it_be_and_carries_on(project: Any) -> None:
    make = "\ndef make():\n    torch.manual_seed(0)\n    return Stateful()\n"
    project.model(MODEL, make).spec(
        """
        calibration: model.py:rows
        methods:
          f: {module: counter, target: cpu, precision: 8a8w, sqnr: 15, inputs: {x: [1, 64]}}
        """
    )
    program = project.program()
    model = project.load_model()
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        x = torch.rand(1, 64, generator=generator)
        assert ratio([model(x)], [program.run_method("f", x).out]) > 15
    assert "state" in [kind for kind, _, _ in record(project).scales]
    assert record(project).scales[0][1] == "x"


def test_what_one_method_writes_another_reads(project: Any) -> None:
    """One that only reads state is calibrated with what is in it by then, and keeps reading it."""
    make = "\ndef make():\n    torch.manual_seed(0)\n    return Notes()\n"
    project.model(NOTES, make).spec(
        """
        calibration: model.py:pairs
        state: {shared: [board.rows]}
        methods:
          put: {module: board, call: put, target: cpu, precision: 8a8w, inputs: {x: [8, 32]}}
          get: {module: board, call: get, target: cpu, precision: 8a8w, inputs: {y: [8, 64]}}
        """
    )
    program, model = project.program(), project.load_model()
    generator = torch.Generator().manual_seed(9)
    expected, got = [], []
    for _ in range(4):
        x, y = (torch.randn(8, n, generator=generator) for n in (32, 64))
        expected.append(model(x, y))
        program.run_method("put", x)
        got.append(program.run_method("get", y).out)
    assert ratio(expected, got) > 25
    ((_, _, written),) = [end for end in record(project, "put").scales if end[0] == "state"]
    ((_, _, read),) = [end for end in record(project, "get").scales if end[0] == "state"]
    assert written == read and len(read) == 1


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "{module: vector, target: cpu, precision: 8da8w, inputs: {x: [1, 40]}}",
            "f: 8da8w quantizes nothing in it",
        ),
        (
            "{module: odd, target: cpu, precision: 8da4w, inputs: {input: [1, 40]}}",
            "f: the 40 inputs of its weight 'odd.weight' are no multiple of 32, the `group`",
        ),
        (
            "{module: relu, target: cpu, precision: 8da4w, inputs: {input: [1, 40]}}",
            "f: 8da4w quantizes nothing in it",
        ),
        (
            "{module: relu, target: cpu, precision: 8da8w, inputs: {input: [1, 40]}}",
            "f: 8da8w quantizes nothing in it",
        ),
    ],
)
def test_a_precision_is_never_silently_left_out(project: Any, method: str, says: str) -> None:
    project.model(MODEL).spec(f"\nmethods:\n  f: {method}\n")
    with pytest.raises(CompileError) as raised:
        project.build()
    assert says in str(raised.value)
