"""Portable: ExecuTorch's own C++ kernels. Every operator, every shape, no delegate."""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

from mmpack.multimethod.targets.base import Availability, Backend, in_blocks
from mmpack.multimethod.versions import is_supported, requirement

SQNR = {"8w": 30.0, "4w": 10.0}
"""Quantized precision -> least ratio in dB: about 10 below the worst that was measured, of tables
of normally distributed numbers and of the adder's."""


@frozen
class Options:
    """precision: `fp32`; `8w`, embedding tables of 8-bit integers, a float32 scale for each row;
    `4w`, of 4-bit ones, `group` neighbours of a row share a bfloat16 scale. All else stays float; a
    table that is tied to `lm_head` is then in the program twice, as integers and as that one's
    float32 weight.
    """

    precision: Literal["fp32", "8w", "4w"] = "fp32"
    group: int = field(default=32, validator=in_blocks)


class Portable(Backend):
    name = "portable"
    Options = Options

    @classmethod
    def available(cls) -> Availability:
        here = is_supported("executorch")
        remedy = None if here else f"pip install '{requirement('executorch')}'"
        return Availability(builds=here, runs=here, detail="part of executorch", remedy=remedy)

    @classmethod
    def tolerance(cls, options: Any) -> float:
        return 1e-4

    @classmethod
    def sqnr(cls, options: Any) -> float | None:
        return SQNR.get(_precision(options))

    @classmethod
    def embedding_weights(cls, options: Any) -> Any:
        if _precision(options) == "fp32":
            return None
        import torch
        from torchao.quantization.granularity import PerAxis, PerGroup
        from torchao.quantization.quant_api import IntxWeightOnlyConfig

        if _precision(options) == "8w":
            return IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
        int4: Any = torch.int4  # type: ignore[attr-defined]
        return IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(options.group))

    @classmethod
    def embedding_group(cls, options: Any) -> int | None:
        return int(options.group) if _precision(options) == "4w" else None


def _precision(options: Any) -> str:
    """A backend that is made from this one may have options of its own, without a precision."""
    return str(getattr(options, "precision", "fp32"))
