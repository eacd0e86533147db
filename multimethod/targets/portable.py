"""Portable: ExecuTorch's own C++ kernels. Every operator, every shape, no delegate."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mmpack.multimethod.targets.base import Availability, Backend
from mmpack.multimethod.versions import is_supported, requirement


@frozen
class Options:
    """None."""


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
