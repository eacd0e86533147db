"""Attention rewritten to single heads, held against itself as it was, in eager PyTorch: exported,
and quantized, in every form. (In the simulator: `test_qnn_heads.py`.)"""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mmpack.multimethod.compile.quantize import _exported
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.targets import BACKENDS, qnn_rewrite
from mmpack.multimethod.targets.qnn_attention import find_blocks
from mmpack.multimethod.targets.qnn_rewrite_check import rewritten

from .forms import FORMS, HEAD, WIDTH, Attention
from .qnn import needs_qnn

QUICK = ("projections: linear", "projections: packed", "groups: sdpa", "gives its weights")


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    program = torch.export.export(module.eval(), inputs, strict=False)
    return program.run_decompositions({})


def products(program: ExportedProgram) -> list[tuple[int, ...]]:
    """The shapes of all products and softmaxes."""
    return [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if any(name in str(node.target) for name in ("matmul", "bmm", "softmax"))
    ]


def require_single_heads(program: ExportedProgram, expected: Any, inputs: Any) -> None:
    """One head a product, and still what it was."""
    assert find_blocks(program) == ()
    assert products(program)
    assert all(prod(shape[:-2]) == 1 for shape in products(program))
    program.validate()
    for e, g in zip(expected, program.module()(*inputs), strict=True):
        assert float(((e - g).norm() / e.norm()).detach()) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_rewritten_and_computes_the_same(form: str) -> None:
    torch.manual_seed(1)
    module = Attention(**FORMS[form]).eval()
    inputs = module.inputs(seed=5)
    program = exported(module, module.inputs())
    told = rewritten(program, "f")
    assert told == {"heads": {"method": "rewrite", "found": 1, "converted": 1}}
    require_single_heads(program, module(*inputs), inputs)


UNQUANTIZED = {"rotary: roll"}  # ExecuTorch's quantizer fails on it


@needs_qnn
@pytest.mark.parametrize(
    "form",
    [
        form if form in QUICK else pytest.param(form, marks=pytest.mark.slow)
        for form in FORMS
        if form not in UNQUANTIZED
    ],
)
def test_a_quantized_program_stays_the_same_to_the_last_bit(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    module = Attention(**FORMS[form]).eval()
    program = quantized(module, "16a4w", monkeypatch)
    inputs = module.inputs(seed=5)
    expected = program.module()(*inputs)
    assert rewritten(program, "f")["heads"]["converted"] == 1
    require_single_heads(program, expected, inputs)


def quantized(
    module: Attention, precision: str, monkeypatch: pytest.MonkeyPatch
) -> ExportedProgram:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    qnn = BACKENDS["qnn"]
    options = qnn.options({"soc": "SM8750", "precision": precision})
    root = qnn.environment(options)["QNN_SDK_ROOT"]
    monkeypatch.setenv("QNN_SDK_ROOT", root)  # else executorch downloads one
    program = exported(module, module.inputs())
    with torch.no_grad():
        prepared = prepare_pt2e(program.module(check_guards=False), qnn.quantizer(options))
        for seed in range(4):
            prepared(*module.inputs(seed))
        return _exported(convert_pt2e(prepared), program)


class Two(nn.Module):
    """Two blocks in a row, the second of which has the keys of the first, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(cache="", bias=False), Attention(cache="")

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        hidden, *rest = given
        hidden, k, v = self.first(hidden, *rest)
        q, _, _ = self.second.projected(hidden)
        mixed, _ = self.second.attended(q, k, v, rest[2])
        return hidden + self.second.out(mixed.transpose(1, 2).flatten(2)), k


class Chained(nn.Module):
    """Attention whose output, heads apart, is the query of other attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention(cache="", gives="heads", kv_heads=4)
        self.keys = nn.Linear(WIDTH, 4 * HEAD)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        _, mixed = self.inner(*given)
        k = self.keys(given[0]).view(1, -1, 4, HEAD).transpose(1, 2)
        weights = (mixed @ k.mT).softmax(-1)
        return weights @ k, weights.amax(-1)


@pytest.mark.parametrize("module", [Two(), Chained()], ids=["two", "chained"])
def test_several_blocks_that_share_tensors(module: Any) -> None:
    inputs = Attention(cache="").inputs()
    program = exported(module, inputs)
    assert rewritten(program, "f")["heads"]["converted"] == 2
    require_single_heads(program, module(*inputs), inputs)


class Remembering(nn.Module):
    """Attention over keys that it keeps itself, in a buffer that it writes to."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(cache="", kv_heads=4)
        self.register_buffer("kept", torch.randn(1, 4, 6, HEAD))

    def forward(self, hidden: Tensor, at: Tensor) -> Tensor:
        q, k, _ = self.attention.projected(hidden)
        self.kept.index_copy_(2, at, k)
        weights = (q @ self.kept.mT).softmax(-1)
        return (weights @ self.kept).transpose(1, 2).flatten(2)


def test_state_is_written_as_before() -> None:
    module = Remembering()
    inputs = (torch.randn(1, 4, WIDTH), torch.tensor([0, 2, 3, 5]))
    program = exported(module, inputs)
    told = rewritten(program, "f")
    assert told["heads"]["converted"] == 1
    assert program.graph_signature.buffers_to_mutate
    runs = program.module()
    for _ in range(2):
        expected, got = module(*inputs), runs(*inputs)
        assert torch.allclose(expected, got, atol=1e-5)
        assert torch.allclose(module.kept, runs.kept, atol=1e-6)
    assert all(prod(shape[:-2]) == 1 for shape in products(program))


class Sorted(Attention):
    """Queries go through an operator that has no rule."""

    def normed(self, x: Tensor) -> Tensor:
        return x.sort(dim=-1).values


def test_without_a_rule_heads_are_cut_out_of_the_whole() -> None:
    module = Sorted().eval()
    inputs = module.inputs()
    program = exported(module, inputs)
    rewritten(program, "f")
    require_single_heads(program, module(*inputs), inputs)
    sorts = [node for node in program.graph.nodes if "sort" in str(node.target)]
    assert {tuple(node.meta["val"][0].shape) for node in sorts} == {(1, 4, 4, 8), (1, 2, 4, 8)}


def test_rows_of_a_projection_go_to_their_heads() -> None:
    module = Attention(heads=4, kv_heads=2, cache="", bias=False).eval()
    program = exported(module, module.inputs())
    rewritten(program, "f")
    held = [t for name, t in program.state_dict.items() if "_part_" in name]
    rows = torch.cat([layer.weight for layer in module.qkv]).split(HEAD)
    assert len(held) == len(rows)
    assert all(any(torch.equal(t, row) for t in held) for row in rows)
    assert not any(tuple(t.shape) == (4 * HEAD, WIDTH) for t in program.state_dict.values())


def test_what_is_no_attention_with_projections_stays_as_it_is() -> None:
    class Bare(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return (q @ k.mT).softmax(-1) @ k

    program = exported(Bare(), (torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8)))
    before = str(program.graph)
    assert rewritten(program, "f")["heads"] == {"method": "rewrite", "found": 0, "converted": 0}
    assert str(program.graph) == before


def test_a_wrong_rewrite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a head's rows were taken from the wrong place."""
    from mmpack.multimethod.targets import qnn_moves

    right = qnn_moves.viewed

    def wrong(box: Any, shape: Any, before: Any) -> Any:
        found = right(box, shape, before)
        return found and tuple((8, 16) if at == (16, 24) else at for at in found)

    monkeypatch.setattr(qnn_moves, "viewed", wrong)
    module = Attention().eval()
    program = exported(module, module.inputs())
    with pytest.raises(CompileError, match=r"f: its attention rewritten .* is off by .*PyTorch"):
        rewritten(program, "f")


def test_a_block_that_keeps_several_heads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn_rewrite, "tiling", lambda boxes, shape: None)
    module = Attention().eval()
    program = exported(module, module.inputs())
    with pytest.raises(CompileError, match=r"f: of 1 attention blocks 1 .*: softmax \(4 heads\)"):
        rewritten(program, "f")
