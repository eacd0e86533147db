"""Programs that together use nearly every node that ExecuTorch's exporter makes for XNNPACK.

`ZOO` names the modules with their inputs and dynamic dims; `exported(name)` is the `.pte`. Some
are quantized or of half precision, some have dynamic shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from attrs import frozen
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F


@frozen
class Case:
    model: Callable[[], nn.Module]
    args: tuple[Tensor, ...]
    dynamic: Any = None
    forced: bool = False  # to take linear layers whose weights are inputs


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Of2(Of):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.function(x, y)


class Residual(nn.Module):
    """conv, batch norm, depthwise, 1x1, pools and a head: a small image network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, dilation=2, padding=2, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.stem(x)))
        y = F.max_pool2d(y + F.hardswish(self.point(self.deep(y))), 2)
        z: Tensor = self.head(self.grouped(y).mean((-1, -2)))
        return z


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(16, dim=-1)
        weights = torch.softmax(torch.bmm(q, k.permute(0, 2, 1)) * 0.25, dim=-1)
        y: Tensor = self.out(torch.bmm(weights, v)) + x
        return y


class Mixed(nn.Module):
    """Two delegates with an operator between them that XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(16, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.up(x)
        return torch.sigmoid(torch.cumsum(self.down(y), 1)), y * 2


def image(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape)


IMAGE = (image(1, 3, 16, 16),)
MAP = (image(1, 4, 8, 8),)
ROW = (image(2, 16),)
POSITIVE = (image(2, 16).abs() + 0.5,)
PAIR = (image(2, 3, 4), image(2, 3, 4).abs() + 1)
TOKENS = (image(1, 6, 16),)
SEQUENCE = ({1: Dim("s", min=2, max=32)},)
BATCH = ({0: Dim("b", min=1, max=32)},)


def unary(x: Tensor) -> Any:
    x = x.abs() + 0.5
    return (
        torch.sigmoid(x) - torch.tanh(x),
        torch.ceil(x) * torch.floor(x),
        torch.exp(x) + torch.log(x),
        torch.sqrt(x) + torch.rsqrt(x) + x * x + x.pow(2),
        F.gelu(x) + F.hardswish(x) + F.elu(x, 1.5) + F.leaky_relu(x, 0.2) + F.relu(x),
        torch.sin(x) + torch.cos(-x) + torch.clamp(x, -0.5, 0.5) + F.hardtanh(x),
    )


def shapes(x: Tensor) -> Any:
    a, b = x[:, :2], x[:, 2:]
    y = torch.cat([x, b], dim=1)
    return (
        torch.cat([a, b, a], dim=1).permute(0, 2, 3, 1) * 2,
        torch.cat([a, b, a, b], dim=1) + torch.cat([y, b, a], dim=1)[:, :8],
        torch.cat([a, b, a + 1, b * 2, a - b], dim=2),
        F.pad(x, (1, 2, 0, 1), value=0.5),
        x.reshape(1, 4, 64) + 1,
    )


def pools(x: Tensor) -> Any:
    return (
        F.max_pool2d(x, 3, 2, 1),
        F.max_pool2d(x, 2, 1, 0, 2),
        F.avg_pool2d(x, 2),
        F.avg_pool2d(x, 3, 2, count_include_pad=False, divisor_override=None),
        F.adaptive_avg_pool2d(x, 1),
        F.interpolate(x, (12, 10), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        (x * 2).max(dim=3, keepdim=True)[0],
    )


def binary(x: Tensor, y: Tensor) -> Any:
    return (
        x + y,
        x - y[:, :1],
        x * y[0],
        x / y,
        torch.minimum(x, y) + torch.maximum(x, y) + 3.0,
        torch.bmm(x, y.permute(0, 2, 1)),
    )


class PRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.PReLU()
        self.each = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.each(self.one(x))
        return y


ZOO: dict[str, Case] = {
    "linear": Case(lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), ROW),
    "linear rows": Case(lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU6()), ROW, BATCH),
    "linear cube": Case(lambda: nn.Linear(16, 8, bias=False), TOKENS),
    "image": Case(Residual, IMAGE),
    "image batch": Case(Residual, (image(2, 3, 16, 16),), BATCH),
    "transposed": Case(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), nn.ReLU()
        ),
        MAP,
    ),
    "transposed grouped": Case(lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), MAP),
    "conv1d": Case(lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (image(1, 4, 9),)),
    "pools": Case(lambda: Of(pools), MAP),
    "unary": Case(lambda: Of(unary), ROW),
    "binary": Case(lambda: Of2(binary), PAIR),
    "shapes": Case(lambda: Of(shapes), MAP),
    "prelu": Case(PRelu, MAP),
    "softmax": Case(lambda: Of(lambda x: torch.softmax(x * 2, -1)), ROW, BATCH),
    "attention": Case(Attention, TOKENS),
    "attention sequence": Case(Attention, TOKENS, SEQUENCE),
    "mixed": Case(Mixed, ROW),
    "channels last": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()),
        (IMAGE[0].to(memory_format=torch.channels_last),),
    ),
    "half": Case(
        lambda: nn.Sequential(nn.Linear(16, 8), nn.Sigmoid()).half(), (image(2, 16).half(),)
    ),
    "half image": Case(lambda: Residual().half(), (IMAGE[0].half(),)),
    "scalar": Case(lambda: Of(lambda x: x * 2.0 + 1.0), (torch.tensor(2.0),)),
    "converted": Case(lambda: Of(lambda x: (x + 1).half() * 2), ROW),
    "mean": Case(lambda: Of(lambda x: x.mean((-1, -2), keepdim=True) * 2), MAP),
    "squeeze": Case(lambda: Of(lambda x: (x * 2).unsqueeze(1).squeeze(1) + 1), ROW),
    "rank 6": Case(
        lambda: Of(lambda x: x.permute(5, 0, 1, 2, 3, 4) + 1), (image(1, 2, 1, 2, 1, 2),)
    ),
    "image any size": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 2, 2)
        ),
        IMAGE,
        ({2: 2 * Dim("h", min=4, max=16), 3: 2 * Dim("w", min=4, max=16)},),
    ),
    "matmul any size": Case(
        lambda: Of2(lambda x, y: torch.bmm(x + 1, y)),
        (image(1, 6, 16), image(1, 16, 5)),
        ({1: Dim("m", min=1, max=16)}, {2: Dim("n", min=1, max=12)}),
    ),
    "heads any size": Case(
        lambda: Of(lambda x: (x + 1).reshape(x.shape[0], x.shape[1], 4, 4).permute(0, 2, 1, 3) * 2),
        TOKENS,
        SEQUENCE,
    ),
    "joined any size": Case(
        lambda: Of2(lambda x, y: x * y + torch.cat([x, y, x + 1], 1)[:, :1]),
        (image(1, 6, 16), image(1, 1, 16)),
        ({1: Dim("m", min=2, max=16)}, None),
    ),
    "weights given": Case(
        lambda: Of2(F.linear),
        (image(2, 16), image(5, 16)),
        forced=True,
    ),
}


def quantized(model: nn.Module, args: tuple[Tensor, ...], **options: Any) -> nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(**options))
    prepared = prepare_pt2e(export(model.eval(), args).module(), quantizer)
    prepared(*args)
    converted: nn.Module = convert_pt2e(prepared)
    converted.eval = lambda: converted  # type: ignore[method-assign]  # exported modules have none
    return converted


def rows(model: nn.Module, weights: torch.dtype, group: int | None = None) -> nn.Module:
    """Inputs of 8 bits, a scale a row; weights with a scale a channel, or per `group` of them."""
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, quantize_

    quantize_(
        model,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=weights, weight_granularity=PerGroup(group) if group else PerAxis(0)
        ),
    )
    return model


def quantized_unary(x: Tensor) -> Any:
    y = torch.sigmoid(x) + torch.tanh(x)
    return F.leaky_relu(y * x, 0.2).softmax(-1), F.hardtanh(x - y)


def quantized_pools(x: Tensor) -> Any:
    y = F.interpolate(F.avg_pool2d(F.max_pool2d(x + x, 2), 2), scale_factor=2, mode="bilinear")
    return F.pad(y, (1, 1, 1, 1)).mean((-1, -2))


WIDE = (image(2, 64),)
FOUR_BITS = {"weight_qmin": -8, "weight_qmax": 7}
ZOO |= {
    "quantized linear": Case(
        lambda: quantized(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), ROW), ROW
    ),
    "quantized channels": Case(lambda: quantized(Residual(), IMAGE, is_per_channel=True), IMAGE),
    "quantized image": Case(lambda: quantized(Residual(), IMAGE), IMAGE),
    "quantized transposed": Case(
        lambda: quantized(nn.ConvTranspose2d(4, 6, 3, 2), MAP, is_per_channel=True), MAP
    ),
    "quantized dynamic": Case(
        lambda: quantized(nn.Linear(16, 8), ROW, is_per_channel=True, is_dynamic=True), ROW
    ),
    "quantized tokens": Case(
        lambda: quantized(nn.Linear(16, 8), TOKENS, is_per_channel=True, is_dynamic=True), TOKENS
    ),
    "quantized attention": Case(lambda: quantized(Attention(), TOKENS), TOKENS),
    "quantized shapes": Case(
        lambda: quantized(Of(lambda x: torch.cat([x + x, x], 1)[:, :6].permute(0, 2, 3, 1)), MAP),
        MAP,
    ),
    "quantized dynamic image": Case(
        lambda: quantized(nn.Conv2d(3, 4, 3), IMAGE, is_per_channel=True, is_dynamic=True), IMAGE
    ),
    "quantized 4 bits": Case(
        lambda: quantized(
            nn.Linear(64, 32), WIDE, is_per_channel=True, is_dynamic=True, **FOUR_BITS
        ),
        WIDE,
    ),
    "quantized unary": Case(lambda: quantized(Of(quantized_unary), TOKENS), TOKENS),
    "quantized pools": Case(lambda: quantized(Of(quantized_pools), MAP), MAP),
    "quantized matmul": Case(
        lambda: quantized(Of2(lambda x, y: torch.bmm(x * y, (x - y).permute(0, 2, 1))), PAIR), PAIR
    ),
    "4 bits": Case(
        lambda: rows(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8)), torch.int4, 32), WIDE
    ),
    "4 bits rows": Case(
        lambda: rows(nn.Sequential(nn.Linear(64, 32)), torch.int4, 32), WIDE, BATCH
    ),
    "4 bits channels": Case(lambda: rows(nn.Sequential(nn.Linear(64, 32)), torch.int4), WIDE),
    "8 bits rows": Case(lambda: rows(nn.Sequential(nn.Linear(64, 32)), torch.int8), WIDE, BATCH),
}

QUICK = (
    "linear rows",
    "image",
    "transposed",
    "pools",
    "unary",
    "binary",
    "shapes",
    "attention sequence",
    "quantized channels",
    "4 bits rows",
)
"""Those that the quick tests use."""


@cache
def exported(name: str) -> bytes:
    """The bytes of a `.pte` with one method of that name."""
    case = ZOO[name]
    program = export(case.model().eval(), case.args, dynamic_shapes=case.dynamic)
    partitioner = XnnpackPartitioner(force_non_static_weights_for_f32_linear=case.forced)
    lowered = to_edge_transform_and_lower({name: program}, partitioner=[partitioner])
    return bytes(lowered.to_executorch(ExecutorchBackendConfig()).buffer)
