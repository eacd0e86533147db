"""Attention in single heads: what is found, what a build refuses, and that the wrapper's form is
one that ExecuTorch converts rightly, in the simulator, at every precision."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpack.examples.adder.model import Adder, AdderConfig
from mmpack.multimethod.errors import CompileError, TargetError, VerifyError
from mmpack.multimethod.link import PteFile, read_manifest
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.targets.qnn_attention import find_blocks, wants_conversion
from mmpack.multimethod.verify.compare import difference
from mmpack.multimethod.verify.heads import APART
from mmpack.wrappers.attention import Attention
from mmpack.wrappers.attention_block import AttentionBlock
from mmpack.wrappers.qkv_proj import QkvProj

from .heads import Blocks, run_heads, single_heads
from .ways import WAYS, Built, build_ways

needs_qnn = pytest.mark.skipif(
    not BACKENDS["qnn"].available().builds, reason="needs pip install 'mmpack[qnn]'"
)

COS = torch.ones(4, 8)
CACHE = torch.randn(1, 2, 12, 8)
ARGUMENTS = (torch.randn(1, 4, 24), COS, COS, torch.ones(4, 16, dtype=torch.bool), CACHE, CACHE)


def layer(heads: int = 4, kv_heads: int = 2) -> Any:
    config = AdderConfig(hidden=24, layers=1, heads=heads, kv_heads=kv_heads, head_dim=8, mlp=8)
    return Adder(config).eval().requires_grad_(False).layers[0]


def exported(module: nn.Module, *arguments: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), arguments, strict=False).run_decompositions({})


class Sdpa(nn.Module):
    """Attention by PyTorch's own operator, with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(1, -1, 4, 8).transpose(1, 2) for p in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


class Router(nn.Module):
    """A softmax between linear layers and a product, which is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(24, 4)

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        return self.gate(x).softmax(-1) @ experts


class TestFinding:
    @pytest.mark.parametrize("options", [{}, {"rotation": "r3"}, {"masked_softmax": True}], ids=str)
    def test_a_block_and_its_heads(self, options: dict[str, Any]) -> None:
        program = exported(AttentionBlock(layer(), 8, **options), *ARGUMENTS)
        (block,) = find_blocks(program)
        assert (block.heads, block.rank, block.projected) == (4, 4, True)

    def test_every_block_of_several(self) -> None:
        blocks = Blocks([AttentionBlock(layer(), 8) for _ in range(3)])
        program = exported(blocks, *ARGUMENTS[:4], *[CACHE] * 6)
        assert [block.heads for block in find_blocks(program)] == [4, 4, 4]

    def test_a_plain_layer_of_linears(self) -> None:
        program = exported(layer(), torch.randn(1, 4, 24), COS, COS)
        (block,) = find_blocks(program)
        assert (block.heads, block.projected) == (4, True)

    def test_a_quantized_program(self) -> None:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        module = torch.export.export(Blocks([AttentionBlock(layer(), 8)]), ARGUMENTS).module()
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
        prepared = prepare_pt2e(module, quantizer)
        prepared(*ARGUMENTS)
        program = torch.export.export(convert_pt2e(prepared), ARGUMENTS)
        assert any("quantize" in node.name for node in program.graph.nodes)
        (block,) = find_blocks(program)
        assert (block.heads, block.projected) == (4, True)

    def test_pytorchs_own_operator(self) -> None:
        (block,) = find_blocks(exported(Sdpa(), torch.randn(1, 4, 24)))
        assert (block.heads, block.projected) == (4, True)

    def test_attention_without_projections_is_nothing_to_convert(self) -> None:
        q, k = torch.randn(1, 4, 4, 8), torch.randn(1, 6, 2, 8)
        program = exported(Attention(nn.Identity()), q, k, k, torch.arange(4))
        (block,) = find_blocks(program)
        assert not block.projected
        assert not wants_conversion(program)

    @pytest.mark.parametrize(
        ("module", "arguments"),
        [
            (QkvProj(layer(), 8, rotation="r3"), (ARGUMENTS[0], COS, COS)),
            (Router(), (torch.randn(1, 4, 24), torch.randn(1, 4, 24))),
            (single_heads(AttentionBlock(layer(), 8)), ARGUMENTS),
            (AttentionBlock(layer(1, 1), 8), (*ARGUMENTS[:4], CACHE[:, :1], CACHE[:, :1])),
        ],
        ids=["projections", "router", "single heads", "one head"],
    )
    def test_what_is_no_attention_of_several_heads(
        self, module: nn.Module, arguments: tuple[Tensor, ...]
    ) -> None:
        assert find_blocks(exported(module, *arguments)) == ()


HEAD = """\
mmpack: 1
model: {{factory: model.py:make}}
targets: {{npu: {{backend: qnn, soc: SM8750, mha2sha: {converted}}}}}
"""
METHOD = """
  {name}:
    module: "."
    wrapper: {wrapper}
    {args}
    target: npu
    inputs:
      hidden: [1, 4, 24]
      cos: [4, 8]
      sin: [4, 8]
"""
CACHES = """
      visible: {shape: [4, 16], dtype: bool}
      past_k: [1, 2, 12, 8]
      past_v: [1, 2, 12, 8]
"""
MODEL = """
from mmpack.examples.adder.model import Adder, AdderConfig
from mmpack.wrappers.attention_block import AttentionBlock
from mmpack.wrappers._softmax import visible_softmax
from mmpack.wrappers._pointwise import to_image

def make():
    torch.manual_seed(0)
    config = AdderConfig(hidden=24, layers=1, heads=4, kv_heads=2, head_dim=8, mlp=8)
    return Adder(config).layers[0]

class Other(AttentionBlock):
    '''The same attention, written otherwise.'''

    def forward(self, hidden, cos, sin, visible, past_k, past_v):
        image = to_image(self.norm(hidden))
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(image).view(1, 4, -1, 8).transpose(1, 2) for p in projections)
        q = q * cos[None, None] + sin[None, None]
        keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        mixed = self.attend(q, keys, values, visible)
        return hidden + self.o_proj(to_image(mixed)).squeeze(-1), k, v

class Folded(Other):
    def attend(self, q, keys, values, visible):
        # A group's queries as rows of one head: no copies of keys. ExecuTorch takes it for as many
        # heads as there are keys' heads, and splits the queries' projection wrongly.
        q = q.reshape(1, 2, 8, 8)
        visible = torch.cat([visible, visible]).view(1, 1, 8, -1)
        weights = visible_softmax(q @ keys.transpose(-2, -1) * 8**-0.5, visible, False)
        mixed = (weights @ values).transpose(1, 2).reshape(1, 2, 4, 16)
        return mixed.transpose(1, 2).reshape(1, 4, 32)

class Repeated(Other):
    def attend(self, q, keys, values, visible):
        keys, values = keys.repeat(1, 2, 1, 1), values.repeat(1, 2, 1, 1)
        weights = visible_softmax(q @ keys.transpose(-2, -1) * 8**-0.5, visible, False)
        return (weights @ values).transpose(1, 2).reshape(1, 4, 32)

class Late(Other):
    def attend(self, q, keys, values, visible):
        keys, values = (self._for_all_heads(x) for x in (keys, values))
        weights = visible_softmax(q @ keys.transpose(-2, -1) * 8**-0.5, visible, False)
        mixed = weights @ values
        for _ in range(4):
            mixed = mixed.relu() - (-mixed).relu()
        return mixed.transpose(1, 2).reshape(1, 4, 32)

class Grouped(Other):
    def attend(self, q, keys, values, visible):
        q, keys, values = q.view(1, 2, 2, 4, 8), keys[:, :, None], values[:, :, None]
        weights = visible_softmax(q @ keys.transpose(-2, -1) * 8**-0.5, visible, False)
        return (weights @ values).reshape(1, 4, 4, 8).transpose(1, 2).reshape(1, 4, 32)
"""


def block(name: str, wrapper: str = "attention_block", more: str = "") -> str:
    args = f"args: {{head_dim: 8{more}}}"
    return METHOD.format(name=name, wrapper=wrapper, args=args) + CACHES.lstrip("\n")


def projections() -> str:
    return METHOD.format(name="qkv", wrapper="qkv_proj", args="args: {head_dim: 8}")


@needs_qnn
class TestBuilding:
    def test_says_what_was_converted_and_how_far_it_is_from_unconverted(self, project: Any) -> None:
        more = ", masked_softmax: true"
        project.file("model.py", "import torch\n" + MODEL)
        project.spec(
            "methods:" + block("block", more=more) + projections(), HEAD.format(converted="true")
        )
        report = project.build(workers=True)
        notes = {m.signature.method: m.note for m in report.methods}
        assert notes["qkv"] is None
        assert notes["block"].startswith("block: 1 of 1 attention blocks in single heads, off by ")
        with PteFile.open(project.output) as file:
            manifest = read_manifest(file)
        heads = manifest.methods["block"].extra["heads"]
        assert (heads["method"], heads["found"], heads["converted"]) == ("pass", 1, 1)
        assert 0 <= heads["apart"] < 0.01
        assert 0 < heads["unconverted_size"] != project.output.stat().st_size
        assert "heads" not in manifest.methods["qkv"].extra

    def test_a_wrong_conversion_is_refused_however_much_the_method_may_be_off(
        self, project: Any
    ) -> None:
        project.file("model.py", "import torch\n" + MODEL)
        text = "methods:" + block("block", "model.py:Folded") + "    tolerance: 1000\n"
        project.spec(text, HEAD.format(converted="true"))
        for verify in (True, False):
            with pytest.raises(VerifyError, match=r"block: its attention .* is off by .* unconver"):
                project.build(workers=True, verify=verify)
            assert not project.output.exists()
        project.spec(text.replace("1000", "0.02"), HEAD.format(converted="false"))
        project.build(workers=True)  # it is the conversion that is wrong, not the method

    def test_what_is_not_converted_is_an_error(self, project: Any) -> None:
        project.file("model.py", "import torch\n" + MODEL)
        wrong = {name: f"model.py:{name.capitalize()}" for name in ("late", "repeated", "grouped")}
        project.spec(
            "methods:" + "".join(block(name, wrapper) for name, wrapper in wrong.items()),
            HEAD.format(converted="true"),
        )
        with pytest.raises(CompileError) as caught:
            project.build(workers=True)
        late, repeated, grouped = (
            next(line for line in str(caught.value).split("\n") if line.startswith(name))
            for name in wrong
        )
        assert "of 1 attention blocks (softmax (4 heads)) ExecuTorch converted 0" in late
        assert "ExecuTorch failed to convert its attention to single heads" in repeated
        assert "has scores of rank 5" in grouped
        for line in (late, repeated, grouped):
            assert "write it as the wrapper `attention_block` does" in line
            assert "`mha2sha: {method: rewrite}`" in line

    @pytest.mark.slow
    def test_what_the_pass_cannot_convert_is_rewritten(self, project: Any) -> None:
        project.file("model.py", "import torch\n" + MODEL)
        names = ("late", "repeated", "grouped", "folded")
        project.spec(
            "methods:" + "".join(block(name, f"model.py:{name.capitalize()}") for name in names),
            HEAD.format(converted="{method: rewrite}"),
        )
        report = project.build(workers=True)
        for method in report.methods:
            said = f"{method.signature.method}: 1 of 1 attention blocks in single heads (rewritten)"
            assert method.note.startswith(said)
        with PteFile.open(project.output) as file:
            manifest = read_manifest(file)
        for name in names:
            heads = manifest.methods[name].extra["heads"]
            assert (heads["method"], heads["found"], heads["converted"]) == ("rewrite", 1, 1)
            assert 0 <= heads["apart"] < 0.01

    def test_a_target_without_attention_has_no_use_for_the_option(self, project: Any) -> None:
        project.file("model.py", "import torch\n" + MODEL)
        project.spec("methods:" + projections(), HEAD.format(converted="true"))
        expected = r"spec\.yaml:3:\d+: targets\.npu\.mha2sha: none of the methods .*\(qkv\)"
        with pytest.raises(TargetError, match=expected):
            project.build(workers=True)


def sqnr(expected: Tensor, got: Tensor) -> float:
    """In decibels."""
    noise = (expected - got).square().sum()
    return float(10 * torch.log10(expected.square().sum() / noise))


def of_attention(answer: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What attention adds to its input, expected and got."""
    hidden = answer["inputs"][0]
    return answer["expected"][0] - hidden, answer["got"][0] - hidden


BOTH = {"rotation": "r3", "masked_softmax": True}
LEAST = {"fp16": 45.0, "16a8w": 25.0, "16a4w": 15.0, "16a4w_block": 15.0}
SLOW = [(precision, options) for precision in ("fp16", "16a8w", "16a4w") for options in ({}, BOTH)]
SLOW.remove(("16a4w", BOTH))


def require_alike(built: Built, precision: str) -> None:
    """Each way is near eager PyTorch; converted by the pass or rewritten, it is what it was."""
    for got in built.got.values():
        hidden, expected = built.inputs[0], built.expected[0]
        assert sqnr(expected - hidden, got[0] - hidden) > LEAST[precision]
    for one, other in itertools.combinations(built.got.values(), 2):
        for a, b in zip(one, other, strict=True):
            assert difference(a, b) < APART / 2
    assert len(set(built.sizes.values())) == len(built.got)


@needs_qnn
@pytest.mark.parametrize(
    ("precision", "options"),
    [("16a4w", BOTH), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
    ids=str,
)
def test_the_block_converted_and_rewritten_is_the_block_unconverted_and_the_eager_one(
    precision: str, options: dict[str, Any], project: Any
) -> None:
    require_alike(build_ways(project, precision, options), precision)


@needs_qnn
@pytest.mark.slow
def test_the_block_rewritten_is_right_with_a_scale_for_each_block_of_weights(project: Any) -> None:
    ways = {way: given for way, given in WAYS.items() if way != "passed"}  # which gets it wrong
    require_alike(build_ways(project, "16a4w_block", BOTH, ways=ways), "16a4w_block")


@needs_qnn
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "16a4w"])
def test_axes_as_long_as_there_are_heads_are_not_taken_for_heads(
    precision: str, project: Any
) -> None:
    sizes = {"width": 64, "heads": 8, "kv_heads": 2, "head_dim": 8, "new": 8, "past": 8}
    require_alike(build_ways(project, precision, BOTH, sizes), precision)


CANNOT = ("projections: packed", "rotary: chunk", "groups: repeat_interleave", "groups: sdpa")
FORMS_MODEL = """
def make():
    torch.manual_seed(1)
    forms = [FORMS[name] for name in {names}]
    return nn.ModuleList([Attention(cache="", **form) for form in forms])

def examples():
    for seed in range(8):
        yield Attention(cache="").inputs(seed)
"""


@needs_qnn
@pytest.mark.slow
def test_forms_that_the_pass_fails_on_are_rewritten_and_run(project: Any) -> None:
    forms = Path(__file__).with_name("forms.py").read_text()
    project.file("model.py", forms + FORMS_MODEL.format(names=CANNOT))
    head = HEAD.format(converted="{method: rewrite}, precision: 16a8w")
    inputs = "{hidden: [1, 4, 24], cos: [4, 8], sin: [4, 8], mask: [4, 4]}"
    # Random weights and no norm: unconverted, the worst of them has 23.8 dB.
    wanted = f"target: npu, calibration: model.py:examples, sqnr: 23, inputs: {inputs}"
    methods = [f"  f{i}: {{module: '{i}', {wanted}}}\n" for i in range(len(CANNOT))]
    project.spec("methods:\n" + "".join(methods), head)
    report = project.build(workers=True)  # which holds them against eager and unconverted ones
    for method in report.methods:
        assert "1 of 1 attention blocks in single heads (rewritten)" in method.note


@needs_qnn
def test_what_turning_and_masked_softmax_do_for_a_quantized_block_with_outliers(
    tmp_path: Path,
) -> None:
    """Keys with a channel 30 times as large as the others, in a cache of 8 bits."""
    outliers = {"precision": "16a8w", "cache_bits": 8, "outlier": 30.0, "lower": False}
    requests = [
        {**outliers, "options": {"rotation": rotation, "masked_softmax": masked}}
        for masked in (False, True)
        for rotation in (None, "r3")
    ]
    wide = {"precision": "16a8w", "lower": False}
    requests += [{**wide, "options": {"masked_softmax": masked}} for masked in (False, True)]
    ratios = [sqnr(*of_attention(answer)) for answer in run_heads(tmp_path, *requests)]
    plain, turned, masked, both, far, near = ratios
    assert turned > plain + 3
    assert both > masked + 4
    assert masked > plain + 1
    assert near > far + 12
