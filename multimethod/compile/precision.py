"""What a unit's precision asks for."""

from __future__ import annotations

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.targets import BACKENDS


def least_sqnr(unit: Unit) -> float | None:
    """The least signal-to-quantization-noise ratio that is right, in dB; None for a unit that is
    not quantized."""
    backend = BACKENDS[unit.backend]
    floor = backend.sqnr(backend.options(unit.options))
    return unit.spec.sqnr if unit.spec.sqnr is not None and floor is not None else floor


def is_calibrated(unit: Unit) -> bool:
    """Whether it takes the ranges of its values from example inputs."""
    backend = BACKENDS[unit.backend]
    return backend.calibrated(backend.options(unit.options))
