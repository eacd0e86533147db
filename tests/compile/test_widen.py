"""Weights in half precision, computed with in float32, beside a model widened as a whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpack.multimethod.compile.listen import listen
from mmpack.multimethod.compile.widen import compute_in_float32, in_float32, let_go, widen_program


class Scaled(nn.Embedding):
    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * torch.tensor(3.3).to(self.weight.dtype)


class Positions(nn.Embedding):
    """Its argument is not what is looked up."""

    def forward(self, mask: Tensor) -> Tensor:
        return super().forward(mask.cumsum(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = Scaled(50, 8, padding_idx=49)
        self.places = Positions(50, 8)
        self.norm = nn.LayerNorm(8)
        self.gain = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.tokens.weight
        self.fails = False

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.places(torch.ones_like(tokens))
        if self.fails:
            raise ValueError("fails")
        out: Tensor = self.head(self.norm(hidden) * self.gain)
        return out


def pair(dtype: torch.dtype) -> tuple[Any, Any]:
    """A model in half precision that computes in float32, and one in float32 with its weights."""
    torch.manual_seed(0)
    model = Decoder().to(dtype).eval().requires_grad_(False)
    whole = copy.deepcopy(model).float()
    compute_in_float32(model)
    return model, whole


TOKENS = torch.tensor([[3, 49, 3, 0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_call_is_that_of_the_widened_model(dtype: torch.dtype) -> None:
    model, whole = pair(dtype)
    before = dict(model.named_parameters(remove_duplicate=False))
    assert torch.equal(model(TOKENS), whole(TOKENS))
    compute_in_float32(model)  # once more does nothing
    assert torch.equal(model(TOKENS), whole(TOKENS))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] for name in before)
    assert model.tokens.padding_idx == 49


def test_a_call_that_fails_leaves_the_weights_as_they_were() -> None:
    model, whole = pair(torch.bfloat16)
    model.fails = True
    with pytest.raises(ValueError, match="fails"):
        model(TOKENS)
    with pytest.raises(IndexError):
        model.tokens(torch.tensor([[50]]))
    model.fails = False
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model(TOKENS), whole(TOKENS))


def test_of_an_embedding_only_what_is_looked_up_is_widened() -> None:
    seen: list[Tensor] = []
    model, _ = pair(torch.bfloat16)
    model.tokens.register_forward_pre_hook(lambda m, _: seen.append(m.weight))
    model(TOKENS)
    assert seen[0].shape == (3, 8) and seen[0].dtype == torch.float32


def test_who_listens_is_told_what_was_looked_up() -> None:
    model, _ = pair(torch.bfloat16)
    told: list[Tensor] = []
    stop = listen(model.tokens, "forward", lambda bound: told.extend(bound.args))
    model(TOKENS)
    stop()
    assert torch.equal(told[0], TOKENS)


def test_a_program_is_held_in_half_precision_until_it_is_widened() -> None:
    model, whole = pair(torch.bfloat16)
    with in_float32(model) as copies:
        assert model.head.weight is model.tokens.weight and model.gain.dtype == torch.float32
        program = torch.export.export(model, (TOKENS,), strict=False)
        let_go(program, copies)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    held = {id(weight) for weight in model.parameters()}
    assert {id(tensor) for tensor in program.state_dict.values()} == held
    widen_program(program)
    assert torch.equal(program.module()(TOKENS), whole(TOKENS))
    graph = {node.meta["val"].dtype for node in program.graph.nodes if node.op == "placeholder"}
    assert graph == {torch.float32, torch.int64}


def test_a_program_that_computes_in_half_precision_stays_so() -> None:
    module = nn.Linear(3, 4).half()
    program = torch.export.export(module, (torch.zeros(1, 3).half(),), strict=False)
    widen_program(program)
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_is_not_told_to_keeps_its_precision(dtype: torch.dtype) -> None:
    model = Decoder().to(dtype)
    with in_float32(model) as copies:
        assert not copies
        assert {weight.dtype for weight in model.parameters()} == {dtype}
