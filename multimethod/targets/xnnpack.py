"""XNNPACK: fast float kernels on ARM and x86 CPUs, static and dynamic shapes."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mmpack.multimethod.targets.base import Availability, Backend
from mmpack.multimethod.versions import requirement


@frozen
class Options:
    """None yet."""


class Xnnpack(Backend):
    name = "xnnpack"
    summary = "XNNPACK on ARM and x86 CPUs: float32, static and dynamic shapes"
    Options = Options
    delegate = "XnnpackBackend"

    @classmethod
    def available(cls) -> Availability:
        from executorch.runtime import Runtime

        runs = Runtime.get().backend_registry.is_available("XnnpackBackend")
        if runs:
            return Availability(builds=True, runs=True, detail="XnnpackBackend is registered")
        return Availability(
            builds=True,
            runs=False,
            detail="this executorch has no XnnpackBackend",
            remedy=f"pip install --force-reinstall --no-deps '{requirement('executorch')}'",
        )

    @classmethod
    def partitioners(cls, options: Any) -> list[Any]:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return [XnnpackPartitioner()]

    @classmethod
    def tolerance(cls, options: Any) -> float:
        return 1e-4
