"""What ExecuTorch makes is accepted, however odd; what cannot be right is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import PteFile, open_program
from mmpack.multimethod.link import schema as s
from mmpack.multimethod.link.write import Piece, Segment, write_pte

from .conftest import Pte
from .programs import WIDE, Mlp, portable, xnnpack


class Shapes(nn.Module):
    """Sizes that are computed while it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape
        parts = x.view(rows * 2, columns // 2).repeat(2, 1)
        kept = torch.cat([parts[:rows], torch.zeros(rows, columns // 2)])
        return kept.mean(0, keepdim=True).expand(rows, -1) * rows


class Many(nn.Module):
    """Operators with all kinds of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm, self.group = nn.LayerNorm(32), nn.GroupNorm(2, 4)
        self.embed = nn.Embedding(10, 32)
        self.lstm = nn.LSTM(32, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.group(self.conv(self.norm(x.reshape(1, -1, 32)[:, :4])))
        picked = self.embed(torch.arange(4))
        a, b, c = torch.split(y, [8, 8, 16], dim=2)
        top, where = torch.topk(y.flatten(), 3)
        y = torch.where(y > 0, y, y.pow(2)).clamp(-1, 2.5).masked_fill(y > 1, float("-inf"))
        z = torch.nn.functional.pad(c, (1, 2), value=3.0).to(torch.int32).to(torch.uint8)
        scattered = torch.zeros(3, 3).index_put((torch.tensor([0, 1]),), torch.ones(3))
        variance, mean = picked.var(1), picked.mean([0, 1])
        up = torch.nn.functional.interpolate(y[None], scale_factor=2.0)
        sums = torch.cumsum(a, 1).amax([1, 2]), b.any(), (b > 0) & ~(b < 1), z // 2
        return y, top, where, scattered, variance, mean, up, self.lstm(picked)[0], *sums


class Fourier(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x).real.clone()


FOUR = (torch.randn(4, 32),)
ROWS = {"x": {0: Dim("rows", min=2, max=16)}}
MADE: dict[str, Callable[[], bytes]] = {
    "shapes": lambda: portable(Shapes(), WIDE, dynamic=ROWS),
    "many": lambda: portable(Many(), FOUR),
    "complex": lambda: portable(Fourier(), FOUR),
    "xnnpack many": lambda: xnnpack({"forward": (Many(), FOUR)}),
    "xnnpack quantized": lambda: xnnpack({"forward": (quantized(Mlp()), FOUR)}),
    "xnnpack dynamic shapes": lambda: xnnpack({"forward": (Shapes(), WIDE)}, forward=ROWS),
}


def quantized(model: nn.Module) -> nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    prepared = prepare_pt2e(torch.export.export(model, FOUR).module(), quantizer)
    prepared(*FOUR)
    converted = convert_pt2e(prepared)
    converted.eval = lambda: converted  # exported modules have no eval()
    return converted


@pytest.mark.parametrize("name", MADE)
def test_accepted(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    path.write_bytes(MADE[name]())
    open_program(path).close()


def tensor(file: PteFile, *, data: bool) -> s.Tensor:
    """The first tensor with, or without, constant data."""
    values = [value.val for value in file.plans[0].values or ()]
    return next(v for v in values if isinstance(v, s.Tensor) and bool(v.data_buffer_idx) == data)


def planned(file: PteFile) -> s.AllocationDetails:
    found = tensor(file, data=False).allocation_info
    assert found is not None
    return found


def call(file: PteFile) -> Any:
    return ((file.plans[0].chains or [])[0].instructions or [])[0]


def set_to(**values: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for name, value in values.items():
            setattr(record, name, value)

    return change


WRONG: dict[str, tuple[Callable[[PteFile], Any], Callable[[Any], None]]] = {
    "scalar type 99 is not known": (lambda f: tensor(f, data=True), set_to(scalar_type=99)),
    "sizes [-1] are negative": (
        lambda f: tensor(f, data=True),
        set_to(sizes=(-1,), dim_order=b"\0"),
    ),
    "dim order [1, 1] is not a permutation": (
        lambda f: tensor(f, data=False),
        set_to(dim_order=b"\1\1"),
    ),
    "2 sizes (at most 16), 1 in dim order": (
        lambda f: tensor(f, data=False),
        set_to(dim_order=b"\0"),
    ),
    "sizes [2147483647, 2147483647] overflow": (
        lambda f: tensor(f, data=False),
        set_to(sizes=(2**31 - 1, 2**31 - 1)),
    ),
    "constant 77 does not exist, there are 5": (
        lambda f: tensor(f, data=True),
        set_to(data_buffer_idx=77),
    ),
    "needs 40000 bytes of constant 1, 16768 are there": (
        lambda f: tensor(f, data=True),
        set_to(sizes=(10000,), dim_order=b"\0"),
    ),
    "memory 3, of 2": (planned, set_to(memory_id=3)),
    "memory 0, of 2": (planned, set_to(memory_id=0)),
    "of memory 1: 9216": (planned, set_to(memory_offset_low=9000)),
    "memory 1 has -5 bytes, at most 1099511627776 are believed": (
        lambda f: f.plans[0],
        set_to(non_const_buffer_sizes=(0, -5)),
    ),
    "memory 1 has 2199023255552 bytes, at most 1099511627776 are believed": (
        lambda f: f.plans[0],
        set_to(non_const_buffer_sizes=(0, 1 << 41)),
    ),
    "input 0: value 99 does not exist, there are 20": (lambda f: f.plans[0], set_to(inputs=(99,))),
    "input 0: value 1 is a constant": (lambda f: f.plans[0], set_to(inputs=(1,))),
    "instruction 0: operator 9 does not exist, there are 3": (
        call,
        lambda c: setattr(c.instr_args, "op_index", 9),
    ),
    "instruction 0: value 99 does not exist, there are 20": (
        call,
        lambda c: setattr(c.instr_args, "args", (99,)),
    ),
    "instruction 0: delegate 0 does not exist, there are 0": (
        call,
        set_to(instr_args=s.DelegateCall(0, (0,))),
    ),
    "instruction 0: value 14 is a Int, expected Tensor or Bool": (
        call,
        set_to(instr_args=s.JumpFalseCall(14, 0)),
    ),
    "instruction 0: jumps on value 0, which is no bool": (
        call,
        set_to(instr_args=s.JumpFalseCall(0, 0)),
    ),
    "instruction 0: move from a Tensor: value 14 is a Int, expected Tensor": (
        call,
        set_to(instr_args=s.MoveCall(0, 14)),
    ),
    "instruction 0 is missing": (call, set_to(instr_args=None)),
    "instruction 0: frees value 0, whose memory is planned": (
        call,
        set_to(instr_args=s.FreeCall(0)),
    ),
    "has no chain of instructions": (lambda f: f.plans[0], set_to(chains=[])),
    "has no values": (lambda f: f.plans[0], set_to(values=None)),
    "method 0: its name is ''": (lambda f: f.plans[0], set_to(name="")),
    "has no method": (lambda f: f.program, set_to(execution_plan=[])),
    "method 'forward' is there twice": (
        lambda f: f.program,
        lambda p: setattr(p, "execution_plan", p.execution_plan * 2),
    ),
    "constant segment 9 does not exist, there are 1": (
        lambda f: f.program.constant_segment,
        set_to(segment_index=9),
    ),
    "named data 'a' is there twice": (
        lambda f: f.program,
        set_to(named_data=[s.NamedData("a", 0), s.NamedData("a", 0)]),
    ),
    "named data 'a': segment 7 does not exist, there are 1": (
        lambda f: f.program,
        set_to(named_data=[s.NamedData("a", 7)]),
    ),
    "delegate 0: its data 3 do not exist, there are 1": (
        lambda f: f.plans[0],
        set_to(delegates=[s.BackendDelegate("B", s.BackendDelegateDataReference(1, 3))]),
    ),
    "operator 0: its name is ": (
        lambda f: f.plans[0],
        set_to(operators=[s.Operator("x" * 100, "out")] * 3),
    ),
    "aten::permute_copy.out: argument 0, value 14 is a Int, expected Tensor": (
        call,
        lambda c: setattr(c.instr_args, "args", (14, *c.instr_args.args[1:])),
    ),
    "argument 2, value 1 is written, but it is a constant": (
        call,
        lambda c: setattr(c.instr_args, "args", (*c.instr_args.args[:2], 1, 1)),
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_refused(message: str, pte: Pte, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    find, change = WRONG[message]
    with PteFile.open(pte("mlp")) as file:
        change(find(file))
        segments = [Segment.of(Piece((file, extent))) for extent in file.segments]
        write_pte(path, file.program, segments, sealed=False)
    with pytest.raises(FormatError, match=re.escape(message)) as error:
        open_program(path)
    assert str(error.value).startswith(f"{path}: ")


def test_xnnpack_weights_that_are_not_there(pte: Pte, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    with PteFile.open(pte("xnnpack_twice")) as file:
        for named in file.program.named_data or ():
            named.key = f"{named.key}2"
        segments = [Segment.of(Piece((file, extent))) for extent in file.segments]
        write_pte(path, file.program, segments, sealed=False)
    with pytest.raises(
        FormatError, match=r"method 'again': delegate 0: constant 1: no named data '[0-9a-f]{64}'"
    ):
        open_program(path)


def test_xnnpack_weights_that_are_too_small(pte: Pte, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    with PteFile.open(pte("xnnpack_twice")) as file:
        segments = [Segment.of(Piece((file, extent))) for extent in file.segments]
        segments[2] = Segment.of(b"short")
        write_pte(path, file.program, segments, sealed=False)
    with pytest.raises(FormatError, match="constant 1 needs 8192 bytes of named data"):
        open_program(path)
