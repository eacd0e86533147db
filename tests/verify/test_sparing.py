"""Which methods of a flow are loaded while it is verified."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mmpack.multimethod.compile.widen import compute_in_float32
from mmpack.multimethod.verify.sparing import Sparing, room_for


class Counting:
    """Says what is loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.most = 0
        self.loads = 0

    def run_method(self, name: str, x: int) -> int:
        if name not in self.loaded:
            self.loaded.append(name)
            self.loads += 1
        self.most = max(self.most, len(self.loaded))
        return x + 1

    def unload(self, name: str) -> None:
        self.loaded.remove(name)


def run(room: int) -> Counting:
    """Three pieces through four methods of 400 bytes each."""
    program: Any = Counting()
    unit = SimpleNamespace(module=nn.Linear(10, 10, bias=False).to(torch.bfloat16))
    units: Any = dict.fromkeys("abcd", unit)
    methods = Sparing(program, units, room)
    for _ in range(3):
        x = 0
        for name in "abcd":
            x = methods[name](x=x)
        assert x == 4
    return program  # type: ignore[no-any-return]


def test_what_there_is_room_for_stays_loaded() -> None:
    roomy, tight, none = run(1600), run(900), run(0)
    assert (roomy.most, roomy.loads) == (4, 4)
    assert (tight.most, tight.loads, tight.loaded) == (3, 2 + 3 * 2, ["a", "b"])
    assert (none.most, none.loads) == (1, 12)


def test_only_weights_kept_in_half_precision_limit_what_is_loaded() -> None:
    model = nn.Linear(10, 10, bias=False)
    assert room_for(model) is None
    model.half()
    assert room_for(model) is None  # its program is in half precision too
    compute_in_float32(model)
    assert room_for(model) == 200 // 4
