"""A program's methods for a flow that is verified, of which not all are loaded at once.

A checkpoint in half precision may be all that there is memory for. The program that is made of it
holds float32, twice as much, of which XNNPACK keeps a copy of its own for every loaded method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.compile.widen import kept_in_half
from mmpack.multimethod.flow.program import Program

FLOAT32 = 4
"""Bytes of an element."""


class Sparing:
    """`methods[name](…)` runs a method of a program; as soon as weights of more than `room` bytes
    are loaded, each method is unloaded when it has run. The first ones of a flow so stay loaded,
    and the others are loaded anew for every piece."""

    def __init__(self, program: Program, units: Mapping[str, Unit], room: int) -> None:
        self._program = program
        self._room = room
        self._sizes = {name: _weights(unit.module) for name, unit in units.items()}
        self._loaded: dict[str, int] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return lambda **inputs: self._run(name, inputs)

    def last_call(self, name: str) -> int:
        return self._program.last_call(name)

    def _run(self, name: str, inputs: Mapping[str, Any]) -> Any:
        result = self._program.run_method(name, **inputs)
        if name not in self._loaded:
            if sum(self._loaded.values()) + self._sizes[name] <= self._room:
                self._loaded[name] = self._sizes[name]
            else:
                self._program.unload(name)
        return result


def room_for(model: nn.Module) -> int | None:
    """A quarter of what a model's weights take, if most of them are kept in half precision; else
    None, for no limit: what is there already is as large as all that would be loaded."""
    half = sum(w.numel() * w.element_size() for w in kept_in_half(model))
    others = sum(w.numel() * w.element_size() for w in model.parameters()) - half
    return half // 4 if half > others else None


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() * FLOAT32 for weight in module.parameters())
