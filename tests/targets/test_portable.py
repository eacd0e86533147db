"""Embedding tables as 8- and 4-bit integers, run on the stock runtime and held against arithmetic
of these tests' own and against eager PyTorch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
        self.tokens, self.scaled = nn.Embedding(300, 64), Scaled(300, 64, 0)
        self.odd, self.linear = nn.Embedding(9, 40), nn.Linear(64, 8)
        with torch.no_grad():
            self.tokens.weight[7] = 0
            self.tokens.weight[8, 3] = 100
        self.mixed, self.tied = Mixed(self.tokens), Tied(self.tokens)
        self.written, self.small = Written(), nn.Embedding(50, 64).half()
    def forward(self, tokens):
        return self.tokens(tokens)
"""
HEAD = """\
mmpack: 1
model: {factory: model.py:make}
targets: {cpu: {backend: xnnpack}, table: {backend: portable, precision: WORD}}
dims: {n: {min: 1, max: 16}}
methods:
"""


def line(name: str, module: str, shape: str, most: int = 299, dtype: str = "int64") -> str:
    """A method of the spec, with an input called `tokens`."""
    wrapper = ", wrapper: embedding" if module not in ("mixed", "tied", "written") else ""
    tokens = f"{{tokens: {{shape: {shape}, dtype: {dtype}, range: 0..{most}}}}}"
    return f"  {name}: {{module: {module}{wrapper}, target: table, inputs: {tokens}}}\n"


METHODS = {
    "tokens": line("tokens", "tokens", "[1, n]"),
    "again": line("again", "tokens", "[1, 1]"),
    "scaled": line("scaled", "scaled", "[2, 3]", dtype="int32"),
    "small": line("small", "small", "[4]", 49),
    "mixed": line("mixed", "mixed", "[1, n]", 298),
    "tied": line("tied", "tied", "[1, n]").replace("}}}\n", "}}, outputs: [hidden, logits]}\n"),
}


def project_of(folder: Path, cache: Path, word: str, *methods: str) -> Project:
    """A project with the methods of these lines; a word may have options behind it."""
    text = "".join(methods)
    return Project(folder, cache).model(MODEL).spec("", HEAD.replace("WORD", word) + text)


WORDS = {"8w": ("byte", 8, 64), "4w": ("4bit", 4, 32)}
"""Word -> what its operator is called after, bits, how many neighbours share a scale."""


def rounded(table: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """A table [rows, width] in which each number is the nearest of 2^bits steps of its group's. The
    largest one of a group is half a step from two: in float32, as torchao reckons."""
    groups, most = table.view(table.shape[0], -1, group), 2 ** (bits - 1)
    step = (groups.abs().amax(-1, keepdim=True) / (most - 0.5)).clamp(min=1e-30)
    steps = (groups * (1 / step)).round().clamp(-most, most - 1)
    return (steps * (step if bits == 8 else step.bfloat16().float())).view(table.shape)


def ratio(expected: torch.Tensor, got: torch.Tensor) -> float:
    noise = float(((expected.double() - got) ** 2).sum())
    return 10 * math.log10(float((expected.double() ** 2).sum()) / noise)


@pytest.fixture(scope="module", params=WORDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, build_cache: Path
) -> tuple[str, Project]:
    folder = tmp_path_factory.mktemp("embedding")
    project = project_of(folder, build_cache, request.param, *METHODS.values())
    project.build()
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
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


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
    assert manifest is not None
    record = manifest.methods["tokens"]
    assert record.options == {"precision": word}
    assert record.left[f"quantized_decomposed::embedding_{kind}.dtype"] == 1
    assert record.delegated == 0 and record.operators == sum(record.left.values())
    assert record.sqnr > record.least_sqnr > 0 and record.tolerance is None
    assert manifest.methods["mixed"].left[f"quantized_decomposed::embedding_{kind}.dtype"] == 2
    told = str(inspect(project.output))
    assert f"target table, {word}, no delegate" in told and " dB" in told
    # Integers; scales, of 4 bytes for a row, 2 for a group; a byte for each row.
    size = 300 * 64 * bits // 8 + 300 * 64 // group * (4 if bits == 8 else 2) + 300
    assert record.size == size
    assert manifest.methods["tied"].size == size + 300 * 64 * 4
    assert manifest.methods["mixed"].size == size + 64 * 96 * 4 + 8  # the 1 in "tokens + 1"


def test_methods_on_one_table_store_it_once(tmp_path: Path, build_cache: Path) -> None:
    sizes = []
    for names in (["tokens"], ["tokens", "again"]):
        project = project_of(tmp_path, build_cache, "8w", *(METHODS[name] for name in names))
        project.build()
        sizes.append(project.output.stat().st_size)
    assert sizes[1] - sizes[0] < 6000 < 300 * 64


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
program, other = load(sys.argv[1]), load(sys.argv[2])
import torch
from executorch.extension.pybindings.portable_lib import _get_operator_names
def there():
    return "quantized_decomposed::embedding_byte.out" in _get_operator_names()
other.run_method("matmul", torch.ones(1, 4), torch.ones(4, 2))
before = there()
out = program.run_method("tokens", torch.tensor([[1]])).out
print(json.dumps([before, there(), list(out.shape)]))
"""


def test_a_new_process_gets_the_kernels_for_the_programs_that_need_them(
    made: tuple[str, Project], toy: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, made[1].output, toy],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [False, True, [1, 1, 64]]
    assert "Failed" not in done.stderr


def test_the_group_is_the_targets_and_another_one_is_compiled_anew(
    tmp_path: Path, build_cache: Path
) -> None:
    some = torch.tensor([[0, 8, 299]])
    for group, compiled in ((32, 1), (64, 1), (32, 0)):
        # An end of the input's range that no other test has: they share the cache.
        method = line("tokens", "tokens", "[1, 3]", 290)
        project = project_of(tmp_path, build_cache, f"4w, group: {group}", method)
        assert project.build().compiled == compiled
        table = rounded(project.load_model().tokens.weight.detach(), 4, group)
        got = load(project.output).run_method("tokens", some).out
        torch.testing.assert_close(got, table[some], rtol=1e-6, atol=1e-7)


NONE = (
    "8w quantizes embedding tables, and the method looks up rows of none (torch.nn.Embedding); "
    "give it a precision that is not quantized"
)


@pytest.mark.parametrize(
    ("word", "method", "says"),
    [
        (
            "8w",
            "  f: {module: linear, target: table, inputs: {input: [1, 64]}}\n",
            f"spec.yaml:6:31: methods.f.target: {NONE}",
        ),
        (
            "fp32",
            "  f: {module: linear, target: table, precision: 8w, inputs: {input: [1, 64]}}\n",
            f"spec.yaml:6:49: methods.f.precision: {NONE}",
        ),
        (
            "8w",
            line("f", "written", "[3]", 7),
            f"spec.yaml:6:32: methods.f.target: {NONE}",
        ),
        (
            "4w",
            line("f", "odd", "[3]", 8),
            "spec.yaml:6:48: methods.f.target: the 40 numbers in a row of its table 'odd.weight' "
            "are no multiple of 32, the `group` that shares a scale at 4w",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_specs_line(
    tmp_path: Path, build_cache: Path, word: str, method: str, says: str
) -> None:
    with pytest.raises(CompileError) as raised:
        project_of(tmp_path, build_cache, word, method).build()
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("8da8w", "expected one of fp32, 8w, 4w; got the text '8da8w'"),
        ("4w, group: 48", "expected a multiple of 32, got 48"),
    ],
)
def test_a_spec_is_told_the_words(tmp_path: Path, build_cache: Path, word: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        _ = project_of(tmp_path, build_cache, word, METHODS["tokens"]).checked


def test_a_table_below_its_ratio_is_not_shipped(tmp_path: Path, build_cache: Path) -> None:
    method = METHODS["tokens"].replace("target: table", "target: table, sqnr: 60")
    project = project_of(tmp_path, build_cache, "8w", method)
    with pytest.raises(VerifyError, match=r"at least 60\.0 dB is wanted"):
        project.build()
    assert not project.output.exists()
