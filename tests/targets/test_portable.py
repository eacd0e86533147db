"""Embedding tables as 8- and 4-bit integers, run on the stock runtime and held against arithmetic of
these tests' own and against eager PyTorch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmpack.multimethod import CallError, load
from mmpack.multimethod.errors import CompileError, SpecError, VerifyError
from mmpack.multimethod.link import PteFile, read_manifest
from mmpack.multimethod.report.inspection import inspect

from ..compile.projects import Project

MODEL = """
class Scaled(nn.Embedding):
    def forward(self, input):
        return super().forward(input) * self.embedding_dim**0.5

class Mixed(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.linear = tokens, nn.Linear(64, 96, bias=False)
    def forward(self, tokens):
        return self.linear(self.tokens(tokens) + self.tokens(tokens + 1))

class Tied(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.lm_head = tokens, nn.Linear(64, 300, bias=False)
        self.lm_head.weight = tokens.weight
    def forward(self, tokens):
        hidden = self.tokens(tokens)
        return hidden, self.lm_head(hidden)

class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.ones(8, 64))
    def forward(self, tokens):
        self.rows.mul_(2)
        return torch.nn.functional.embedding(tokens, self.rows)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.scaled, self.odd = nn.Embedding(300, 64), Scaled(300, 64, 0), nn.Embedding(9, 40)
        with torch.no_grad():
            self.tokens.weight[7] = 0
            self.tokens.weight[8, 3] = 100
        self.mixed, self.tied, self.linear = Mixed(self.tokens), Tied(self.tokens), nn.Linear(64, 8)
        self.written, self.small = Written(), nn.Embedding(50, 64).half()
    def forward(self, tokens):
        return self.tokens(tokens)
"""
SPEC = """
dims: {n: {min: 1, max: 16}}
methods:
  tokens: {module: tokens, wrapper: embedding, target: plain, precision: WORD, inputs: {tokens: {shape: [1, n], dtype: int64, range: 0..299}}}
  again: {module: tokens, wrapper: embedding, target: plain, precision: WORD, inputs: {tokens: {shape: [1, 1], dtype: int64, range: 0..299}}}
  scaled: {module: scaled, wrapper: embedding, target: plain, precision: WORD, inputs: {tokens: {shape: [2, 3], dtype: int32, range: 0..299}}}
  mixed: {module: mixed, target: plain, precision: WORD, inputs: {tokens: {shape: [1, n], dtype: int64, range: 0..298}}}
  tied: {module: tied, target: plain, precision: WORD, inputs: {tokens: {shape: [1, n], dtype: int64, range: 0..299}}, outputs: [hidden, logits]}
  small: {module: small, wrapper: embedding, target: plain, precision: WORD, inputs: {tokens: {shape: [4], dtype: int64, range: 0..49}}}
"""
WORDS = {"8w": ("byte", 8, 64), "4w": ("4bit", 4, 32)}
"""Word -> what its operator is called after, bits, how many neighbours share a scale."""


def rounded(table: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """A table [rows, width] in which each number is the nearest of 2^bits steps of its group's. The
    largest one of a group is half a step from two: in float32, as torchao reckons."""
    groups, most = table.view(table.shape[0], -1, group), 2 ** (bits - 1)
    step = (groups.abs().amax(-1, keepdim=True) / (most - 0.5)).clamp(min=1e-30)
    return ((groups * (1 / step)).round().clamp(-most, most - 1) * step).view(table.shape)


def ratio(expected: torch.Tensor, got: torch.Tensor) -> float:
    noise = float(((expected.double() - got) ** 2).sum())
    return 10 * math.log10(float((expected.double() ** 2).sum()) / noise)


@pytest.fixture(scope="module", params=WORDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, build_cache: Path
) -> tuple[str, Project]:
    project = Project(tmp_path_factory.mktemp("embedding"), build_cache)
    project.model(MODEL).spec(SPEC.replace("WORD", request.param)).build()
    return request.param, project


def test_a_lookup_gives_the_rounded_rows(made: tuple[str, Project]) -> None:
    word, project = made
    _, bits, group = WORDS[word]
    program, model = load(project.output), project.load_model()
    model.requires_grad_(False)
    table = rounded(model.tokens.weight, bits, group)
    floor = {"8w": 35.0, "4w": 15.0}[word]

    tokens = torch.tensor([[0, 299, 7, 8, 150, 1, 2, 3]])
    got = program.run_method("tokens", tokens).out
    torch.testing.assert_close(got, table[tokens], rtol=1e-6, atol=1e-7)
    assert not got[0, 2].any()
    plain = tokens[:, [0, 1, 4, 5, 6, 7]]
    assert floor < ratio(model.tokens(plain), program.run_method("tokens", plain).out) < 60
    assert torch.equal(program.run_method("again", tokens[:, :1]).out, got[:, :1])

    few = torch.tensor([[0, 5, 299], [1, 1, 200]], dtype=torch.int32)
    got = program.run_method("scaled", few).out
    expected = rounded(model.scaled.weight, bits, group)[few.long()] * 8
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    assert ratio(model.scaled(few.long())[:, 1:], got[:, 1:]) > floor

    got = program.run_method("small", torch.arange(4)).out
    assert got.dtype == torch.float16
    expected = rounded(model.small.weight.float(), bits, group)[:4].half()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_all_else_stays_float(made: tuple[str, Project]) -> None:
    word, project = made
    _, bits, group = WORDS[word]
    program, model = load(project.output), project.load_model()
    model.requires_grad_(False)
    table = rounded(model.tokens.weight, bits, group)
    tokens = torch.tensor([[0, 298, 150]])
    expected = model.mixed.linear(table[tokens] + table[tokens + 1])
    got = program.run_method("mixed", tokens).out
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    got = program.run_method("tied", tokens)
    torch.testing.assert_close(got.hidden, table[tokens], rtol=1e-6, atol=1e-7)
    expected = table[tokens] @ model.tokens.weight.T
    torch.testing.assert_close(got.logits, expected, rtol=1e-5, atol=1e-4)


def test_it_is_told_and_stored_in_as_many_bits(made: tuple[str, Project]) -> None:
    word, project = made
    kind, bits, group = WORDS[word]
    with PteFile.open(project.output) as file:
        manifest = read_manifest(file)
        constants = {s.size for s in file.segments}
    assert manifest is not None
    record = manifest.methods["tokens"]
    assert record.options == {"precision": word}
    assert record.left[f"quantized_decomposed::embedding_{kind}"] == 1
    assert record.delegated == 0 and record.operators == sum(record.left.values())
    assert record.sqnr > record.least_sqnr > 0 and record.tolerance is None
    assert set(manifest.methods["mixed"].left) >= {f"quantized_decomposed::embedding_{kind}"}
    told = str(inspect(project.output))
    assert f"portable {word}" in told or word in told
    # Integers, a scale for each group, a zero for each row; and the graph.
    least = 300 * 64 * bits // 8 + 300 * 64 // group * 4 + 300
    assert least < record.size < least + 4000
    assert constants
    (tied,) = [manifest.methods[name] for name in ("tied",)]
    assert tied.size > 300 * 64 * 4 + least


def test_methods_on_one_table_store_it_once(tmp_path: Path, build_cache: Path) -> None:
    sizes = {}
    for methods in (["tokens"], ["tokens", "again"]):
        lines = [line for line in SPEC.splitlines() if not line.startswith("  ")]
        lines += [line for line in SPEC.splitlines() if line.strip().split(":")[0] in methods]
        project = Project(tmp_path, build_cache).model(MODEL).spec("\n".join(lines))
        project.spec("\n".join(lines).replace("WORD", "8w")).build()
        sizes[len(methods)] = project.output.stat().st_size
    assert sizes[2] - sizes[1] < 6000 < 300 * 64


def test_an_index_beyond_the_table_is_an_error_that_ends_no_process(
    made: tuple[str, Project],
) -> None:
    program = load(made[1].output)
    for beyond in (300, -1, 2**40):
        with pytest.raises(CallError, match="input 'tokens': expected values from 0 to 299"):
            program.run_method("tokens", torch.tensor([[0, beyond]]))
    assert program.run_method("tokens", torch.tensor([[299]])).out.shape == (1, 1, 64)


LOAD = """
import json, sys
from mmpack.multimethod import load
module = "executorch.kernels.quantized"
program, other = load(sys.argv[1]), load(sys.argv[2])
import torch
other.run_method("matmul", torch.ones(1, 4), torch.ones(4, 2))
before = module in sys.modules
out = program.run_method("tokens", torch.tensor([[1]])).out
print(json.dumps([before, module in sys.modules, list(out.shape)]))
"""


def test_a_new_process_gets_the_kernels_for_the_programs_that_need_them(
    made: tuple[str, Project], toy: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, made[1].output, toy], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [False, True, [1, 1, 64]]
    assert "Failed" not in done.stderr


def test_the_group_is_the_targets_and_another_one_is_compiled_anew(
    tmp_path: Path, build_cache: Path
) -> None:
    head = """\
mmpack: 1
model: {factory: model.py:make}
targets: {table: {backend: portable, precision: 4w, group: GROUP}}
"""
    text = "\nmethods:\n  f: {module: tokens, target: table, inputs: {input: {shape: [3], dtype: int64, range: 0..299}}}\n"
    project = Project(tmp_path, build_cache).model(MODEL)
    for group, compiled in ((32, 1), (64, 1), (32, 0)):
        project.spec(text, head.replace("GROUP", str(group)))
        assert project.build().compiled == compiled
        table = rounded(project.load_model().tokens.weight.detach(), 4, group)
        some = torch.tensor([0, 8, 299])
        got = load(project.output).run_method("f", some).out
        torch.testing.assert_close(got, table[some], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "{module: linear, target: plain, precision: 8w, inputs: {input: [1, 64]}}",
            "spec.yaml:5:47: methods.f.precision: 8w quantizes embedding tables, and the method looks "
            "up rows of none (torch.nn.Embedding); give it a precision that is not quantized",
        ),
        (
            "{module: written, target: plain, precision: 8w, inputs: {tokens: {shape: [3], dtype: "
            "int64, range: 0..7}}}",
            "spec.yaml:5:48: methods.f.precision: 8w quantizes embedding tables",
        ),
        (
            "{module: odd, target: plain, precision: 4w, inputs: {input: {shape: [3], dtype: int64, "
            "range: 0..8}}}",
            "the 40 numbers in a row of its table 'odd.weight' are no multiple of 32, the `group`",
        ),
    ],
)
def test_what_holds_no_table_is_refused_with_the_specs_line(
    tmp_path: Path, build_cache: Path, method: str, says: str
) -> None:
    project = Project(tmp_path, build_cache).model(MODEL).spec(f"methods:\n  f: {method}\n")
    with pytest.raises(CompileError) as raised:
        project.build()
    assert says in str(raised.value)


def test_the_spec_is_told_the_words(tmp_path: Path, build_cache: Path) -> None:
    method = "{module: tokens, target: plain, precision: 8da8w, inputs: {input: [1]}}"
    project = Project(tmp_path, build_cache).spec(f"methods:\n  f: {method}\n")
    with pytest.raises(SpecError, match="expected one of fp32, 8w, 4w; got the text '8da8w'"):
        _ = project.checked


def test_a_table_below_its_ratio_is_not_shipped(tmp_path: Path, build_cache: Path) -> None:
    method = (
        "{module: tokens, target: plain, precision: 4w, sqnr: 40, inputs: {input: {shape: [9], "
        "dtype: int64, range: 0..299}}}"
    )
    project = Project(tmp_path, build_cache).model(MODEL).spec(f"methods:\n  f: {method}\n")
    with pytest.raises(VerifyError, match=r"at least 40\.0 dB is wanted"):
        project.build()
