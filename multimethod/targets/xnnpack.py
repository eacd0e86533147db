"""XNNPACK: fast kernels on ARM and x86 CPUs, float and quantized, static and dynamic shapes.

Source: ExecuTorch 1.5, `backends/xnnpack/quantizer/xnnpack_quantizer.py` (8-bit), and its guide to
quantization with XNNPACK (4-bit: torchao's `quantize_`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from mmpack.multimethod.stock_runtime import stock_runtime
from mmpack.multimethod.targets.base import Availability, Backend, in_blocks
from mmpack.multimethod.targets.xnnpack_gelu import write_out_tanh_gelu
from mmpack.multimethod.versions import requirement

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SQNR = {"8a8w": 20.0, "8da8w": 30.0, "8da4w": 15.0}
"""Quantized precision -> least ratio in dB: about 10 below the worst that the README measures."""


@frozen
class Options:
    """precision: `fp32`; `8a8w`, 8-bit activations with ranges from calibration and 8-bit weights;
    `8da8w`, 8-bit activations with ranges found anew at every call; `8da4w`, the same with 4-bit
    weights, `group` neighbours of which share a scale. Quantized are linear layers and
    convolutions; at `8da4w` linear layers, and at `8a8w` also add, mul, cat and average pooling.
    """

    precision: Literal["fp32", "8a8w", "8da8w", "8da4w"] = "fp32"
    group: int = field(default=32, validator=in_blocks)


class Xnnpack(Backend):
    name = "xnnpack"
    Options = Options
    delegate = "XnnpackBackend"

    @classmethod
    def available(cls) -> Availability:
        runs = stock_runtime().backend_registry.is_available("XnnpackBackend")
        if runs:
            return Availability(builds=True, runs=True, detail="XnnpackBackend is registered")
        return Availability(
            builds=True,
            runs=False,
            detail="this executorch has no XnnpackBackend",
            remedy=f"pip install --force-reinstall --no-deps '{requirement('executorch')}'",
        )

    @classmethod
    def prepare(cls, program: ExportedProgram, method: str, options: Any) -> dict[str, Any]:
        write_out_tanh_gelu(program)
        return {}

    @classmethod
    def partitioners(cls, options: Any) -> list[Any]:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return [XnnpackPartitioner()]

    @classmethod
    def tolerance(cls, options: Any) -> float:
        return 1e-4

    @classmethod
    def sqnr(cls, options: Any) -> float | None:
        return SQNR.get(options.precision)

    @classmethod
    def calibrated(cls, options: Any) -> bool:
        return bool(options.precision == "8a8w")

    @classmethod
    def quantizer(cls, options: Any) -> Any:
        if options.precision not in ("8a8w", "8da8w"):
            return None
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e import MinMaxObserver

        dynamic = options.precision == "8da8w"
        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
        if not dynamic:
            # The histograms that it would have take ten times as long, and measured no better.
            observer = MinMaxObserver.with_args(eps=2**-12)
            act = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=observer)
            config = dataclasses.replace(config, input_activation=act, output_activation=act)
        return XNNPACKQuantizer().set_global(config)

    @classmethod
    def linear_weights(cls, options: Any) -> Any:
        if options.precision != "8da4w":
            return None
        import torch
        from torchao.quantization.granularity import PerGroup
        from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig

        int4: Any = torch.int4  # type: ignore[attr-defined]
        granularity = PerGroup(options.group)
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=int4, weight_granularity=granularity
        )
