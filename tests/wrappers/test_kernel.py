"""Kernels of attention in a program, held against a softmax written out.

ExecuTorch's fused operator has its own ideas of causal masks, reads what it is told to without
looking, and goes over keys in blocks of 512, of which some are hidden as a whole here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmpack.multimethod import Program

from ..compile.projects import Project

HEADS, KV_HEADS, DIM, LONGEST, CHUNK, WINDOW = 4, 2, 8, 2100, 6, 5

MODEL = """
class Attends(nn.Module):
    def __init__(self, window, scaling):
        super().__init__()
        self.sliding_window, self.scaling = window, scaling

class Layer(nn.Module):
    def __init__(self, window, scaling):
        super().__init__()
        self.self_attn = Attends(window, scaling)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.full, self.near = Layer(None, 8**-0.5), Layer(5, 0.7)
"""
METHOD = """
  {module}.{size}.{target}:
    module: {module}
    wrapper: attention
    args: {{kernel: {kernel}}}
    target: {target}
    inputs:
      q: [1, {size}, 4, 8]
      k: [1, kv, 2, 8]
      v: [1, kv, 2, 8]
      positions: {{shape: [{size}], dtype: int64, range: 0..2099}}
    outputs: mixed
"""


@pytest.fixture(scope="module", params=["custom_sdpa", "grouped"])
def kernel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def program(kernel: str, tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Program:
    methods = [
        METHOD.format(module=module, size=size, target=target, kernel=kernel)
        for module in ("full", "near")
        for size, target in (("chunk", "cpu"), ("one", "plain"))
    ]
    project = Project(tmp_path_factory.mktemp("sdpa"), build_cache).model(MODEL)
    dims = "dims: {chunk: 6, one: 1, kv: {min: 1, max: 2100}}\n"
    return project.spec(f"{dims}methods:{''.join(methods)}").program()


def written_out(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, near: bool) -> Tensor:
    """In float64, one query and head at a time, over the keys that it sees."""
    mixed = torch.zeros(1, len(positions), HEADS, DIM, dtype=torch.float64)
    for row, position in enumerate(positions.tolist()):
        first = max(0, position - WINDOW + 1) if near else 0
        seen = slice(first, position + 1)
        for head in range(HEADS):
            keys = k[0, seen, head // (HEADS // KV_HEADS)].double()
            scores = keys @ q[0, row, head].double() * (0.7 if near else DIM**-0.5)
            values = v[0, seen, head // (HEADS // KV_HEADS)].double()
            mixed[0, row, head] = scores.softmax(0) @ values
    return mixed.flatten(2).float()


def some(length: int, new: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, new, HEADS, DIM, generator=generator) * 2
    k, v = torch.randn(2, 1, length, KV_HEADS, DIM, generator=generator)
    return q, k, v


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("size", ["chunk.cpu", "one.plain"])
@pytest.mark.parametrize("length", [1, 2, 5, 64, 511, 512, 513, 1024, 1030, LONGEST])
def test_it_is_the_softmax_over_the_keys_so_far(
    program: Program, length: int, size: str, near: bool
) -> None:
    method = program[f"{'near' if near else 'full'}.{size}"]
    new = CHUNK if size.startswith("chunk") else 1
    q, k, v = some(length, new, length)
    for last in {length - 1, length // 2, 0}:
        # A piece that ends there, its last rows padded with the last position, as flows do it.
        positions = (last - min(last, new - 2) + torch.arange(new)).clamp(0, last)
        got = method(q, k, v, positions).mixed
        torch.testing.assert_close(got, written_out(q, k, v, positions, near), atol=2e-5, rtol=0)


@pytest.mark.parametrize("near", [False, True])
def test_positions_in_any_order_and_beyond_the_keys(program: Program, near: bool) -> None:
    q, k, v = some(600, CHUNK, 1)
    positions = torch.tensor([599, 0, 601, 3, 512, 512])
    got = program[f"{'near' if near else 'full'}.chunk.cpu"](q, k, v, positions).mixed
    torch.testing.assert_close(got, written_out(q, k, v, positions, near), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", ["chunk.cpu", "one.plain"])
@pytest.mark.parametrize("module", ["full", "near"])
def test_keys_behind_the_last_query_may_be_anything_finite(
    program: Program, module: str, size: str
) -> None:
    new = CHUNK if size.startswith("chunk") else 1
    q, k, v = some(700, new, 2)
    positions = torch.arange(40, 40 + new)
    expected = program[f"{module}.{size}"](q, k, v, positions).mixed
    k[:, 40 + new :], v[:, 40 + new :] = 1e4, -1e8
    got = program[f"{module}.{size}"](q, k, v, positions).mixed
    # The kernel's last bits differ between equal calls. Of a row that is seen at all, by one part
    # in 1e14, there would be as much.
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", ["chunk.cpu", "one.plain"])
def test_a_query_that_sees_no_key_gets_something_finite(program: Program, size: str) -> None:
    new = CHUNK if size.startswith("chunk") else 1
    q, k, v = some(30, new, 3)
    got = program[f"near.{size}"](q, k, v, torch.full((new,), 2000)).mixed
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("size", ["chunk.cpu", "one.plain"])
def test_a_position_far_beyond_the_keys_sees_them_all(program: Program, size: str) -> None:
    """Where the operator's own causal mask would end the process."""
    new = CHUNK if size.startswith("chunk") else 1
    q, k, v = some(3, new, 4)
    positions = torch.full((new,), 2000)
    got = program[f"full.{size}"](q, k, v, positions).mixed
    torch.testing.assert_close(got, written_out(q, k, v, positions, False), atol=2e-5, rtol=0)


def test_the_operator_is_in_the_program_and_what_is_left_is_counted(
    program: Program, kernel: str
) -> None:
    assert program.manifest is not None
    for name, record in program.manifest.methods.items():
        assert record.left.get("llama::custom_sdpa", 0) == (kernel == "custom_sdpa"), name
        if kernel == "grouped" and record.target == "cpu":  # XNNPACK has all that computes
            assert not {"aten::bmm", "aten::_softmax", "aten::mul.Tensor"} & record.left.keys()
        assert record.operators == record.delegated + sum(record.left.values())
        assert record.verified
        assert bool(record.delegated) == name.endswith("chunk.cpu")


def test_a_process_that_knows_nothing_of_it_runs_it(program: Program) -> None:
    code = f"""
import sys, torch
from mmpack.multimethod import load
program = load({str(program.path)!r})
assert "executorch.extension.llm.custom_ops.custom_ops" not in sys.modules
q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 3, 2, 8)
print(program.run_method("full.one.plain", q, k, k, torch.tensor([2])).mixed.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch.Size([1, 1, 32])\n"
    assert "executorch" not in done.stderr
