"""Portable: ExecuTorch's own C++ kernels. Every operator, every shape, no delegate."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mmpack.multimethod.targets.base import Availability, Backend


@frozen
class Options:
    """None."""


class Portable(Backend):
    name = "portable"
    summary = "ExecuTorch's portable kernels on the CPU: any operator, static and dynamic shapes"
    Options = Options

    @classmethod
    def available(cls) -> Availability:
        return Availability(builds=True, runs=True, detail="part of executorch")

    @classmethod
    def partitioners(cls, options: Any) -> list[Any]:
        return []

    @classmethod
    def tolerance(cls, options: Any) -> float:
        return 1e-4

    @classmethod
    def delegates(cls) -> bool:
        return False
