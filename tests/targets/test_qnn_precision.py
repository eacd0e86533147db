"""QNN's quantized precisions, compiled by its compiler and run in its simulator."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from mmpack.multimethod.link import PteFile, read_manifest
from mmpack.multimethod.targets import BACKENDS

FOUND = BACKENDS["qnn"].available()
pytestmark = pytest.mark.skipif(
    not (FOUND.builds and FOUND.runs), reason=f"qnn: {FOUND.detail}; {FOUND.remedy}"
)

MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 192, bias=False), nn.Linear(192, 64)
    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.up(x)))
    def cut(self, x):
        return self.down(torch.erf(self.up(x)))  # QNN does not take what is in the middle

def examples():
    generator = torch.Generator().manual_seed(3)
    for i in range(8):
        yield {"x": torch.randn(1, 8, 64, generator=generator)}
"""
LEAST = {"16a8w": 35.0, "16a4w": 15.0, "16a4w_block": 15.0, "8a8w": 25.0}
"""Precision -> ratio in dB. A block that is compiled wrongly has less than 1 dB here."""
SPEC = """\
mmpack: 1
model: {factory: model.py:make}
targets: {npu: {backend: qnn, soc: SM8750, precision: 16a8w}}
calibration: model.py:examples
methods:
""" + "".join(
    f'  m{word}: {{module: ".", target: npu, precision: {word}, inputs: {{x: [1, 8, 64]}}}}\n'
    for word in LEAST
)


def test_every_precision_computes_what_the_model_does(project: Any) -> None:
    project.model(MODEL).spec("", head=SPEC)
    program = project.program(workers=True)
    model = project.load_model()
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1, 8, 64, generator=generator)
    expected = model(x)
    with PteFile.open(project.output) as file:
        manifest = read_manifest(file)
        assert manifest is not None
    for word, least in LEAST.items():
        got = program.run_method(f"m{word}", x).out
        noise = float((expected - got).square().sum())
        assert 10 * math.log10(float(expected.square().sum()) / noise) > least, word
        record = manifest.methods[f"m{word}"]
        assert record.sqnr is not None and record.sqnr > least
        assert record.delegated == record.operators
        (kind, _, (scale,)), (out, _, _) = record.scales
        assert (kind, out) == ("input", "output")
        assert (scale.low, scale.high, scale.dtype) == (
            (0, 255, "uint8") if word == "8a8w" else (0, 65535, "uint16")
        )
    assert manifest.methods["m16a4w"].size < manifest.methods["m16a8w"].size


DISSIMILAR = """\
mmpack: 1
model: {factory: model.py:make}
targets:
  npu: {backend: qnn, soc: SM8750, precision: 16a8w}
  older: {backend: qnn, soc: SM8550, precision: fp16}
calibration: model.py:examples
methods:
  fine: {module: ".", target: npu, inputs: {x: [1, 8, 64]}}
  half: {module: ".", target: npu, precision: fp16, inputs: {x: [1, 8, 64]}}
  cut: {module: ".", call: cut, target: older, inputs: {x: [1, 8, 64]}}
"""


def test_dissimilar_methods_are_one_program(project: Any) -> None:
    project.model(MODEL).spec("", head=DISSIMILAR)
    program, model = project.program(workers=True), project.load_model()
    x = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(11))
    for name in ("cut", "fine", "half", "cut"):
        expected = model.cut(x) if name == "cut" else model(x)
        got = program.run_method(name, x).out
        noise = (expected - got).square().mean() / expected.square().mean()
        assert noise < 1e-4, name  # 40 dB
    with PteFile.open(project.output) as file:
        manifest = read_manifest(file)
        assert manifest is not None
        graphs = {plan.name: len(plan.delegates or ()) for plan in file.plans}
    assert graphs == {"fine": 1, "half": 1, "cut": 2}
    options = {n: (r.options["soc"], r.options["precision"]) for n, r in manifest.methods.items()}
    assert options == {
        "fine": ("SM8750", "16a8w"),
        "half": ("SM8750", "fp16"),
        "cut": ("SM8550", "fp16"),
    }


@pytest.mark.slow
def test_the_adder_still_adds_at_16a8w(tmp_path: Path, build_cache: Path) -> None:
    """Projections and MLPs on the NPU, attention in float on the CPU: one prompt at a time, the
    likeliest byte after each byte of the answer is the right one."""
    from mmpack.examples.adder import sums
    from mmpack.multimethod import build, load

    home = Path(__file__).parents[2] / "examples" / "adder"
    made = YAML().load(home / "adder.yaml")
    made["model"] = {"factory": f"{home}/model.py:adder", "weights": f"{home}/adder.safetensors"}
    made["calibration"] = "mmpack.examples.adder.calibration:prompts"
    made["targets"]["npu"] = {"backend": "qnn", "soc": "SM8750", "precision": "16a8w"}
    del made["dims"]["one"]
    for method in made["methods"].values():
        method["each"]["n"] = ["chunk"]
        if method["wrapper"] in ("qkv_proj", "output_mlp"):
            method["target"] = "npu"
    made["flow"]["{name}"]["each"] = {"name": ["prefill"], "n": {"cycle": ["chunk"]}}
    spec = tmp_path / "adder.yaml"
    YAML().dump(made, spec)
    build(spec, tmp_path / "adder.pte", cache=build_cache, jobs=2)

    flow = load(tmp_path / "adder.pte").flow("prefill")
    rng = random.Random(0)
    right = 0
    for question in sums.held_out(20, 1):
        shown = "".join(sums.line(*sums.draw(rng)) for _ in range(6)) + sums.line(*question)
        tokens = torch.tensor([sums.encode(shown)])
        guess = flow.run(tokens=tokens).logits.argmax(-1)[0]
        start = shown.rindex("=") + 1
        right += torch.equal(guess[start - 1 : -1], tokens[0, start:])
    assert right >= 18
