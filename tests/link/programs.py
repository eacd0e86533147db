"""The programs that the tests of `link` link: made by ExecuTorch's own exporter, one a function.

Each maker returns the bytes of a `.pte`; `CASES` names them with the inputs to call them with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    ExecutorchBackendConfig,
    to_edge,
    to_edge_transform_and_lower,
)
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from torch import nn
from torch._higher_order_ops.map import map as torch_map
from torch.export import Dim, export


class Mlp(nn.Module):
    """Two linears around a relu. `seed` fixes the weights, so two of one seed share them."""

    def __init__(self, seed: int = 0, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.relu(self.up(x)))
        return y


class Twice(Mlp):
    """An Mlp applied twice: the same weights in another program."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x)) + 1


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.cond(x.sum() > 0, lambda t: t + 1.0, lambda t: t * 3.0, (x,))
        return y


class Cat(nn.Module):
    """Uses a tensor list, an optional list, an int list and scalars."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([x, y], dim=1)
        return both.permute(0, 2, 1).contiguous() * 0.5, x[:, torch.tensor([0, 2, 1])]


class Cache(nn.Module):
    """A buffer that calls write into: `put` sets a row, `bump` adds to all, `peek` sums."""

    cache: torch.Tensor
    other: torch.Tensor

    def __init__(self, shape: tuple[int, ...] = (4, 8)) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(shape))
        self.register_buffer("other", torch.zeros(3))


class Put(Cache):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.copy_(x.expand_as(self.cache))
        self.other.add_(1.0)
        return self.cache.sum() + self.other.sum() * 0


class Bump(Cache):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.add_(x)
        return self.cache.sum()


class Peek(Cache):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.other.add_(x)
        self.cache.mul_(1.0)
        return torch.relu(self.cache * 1.0).sum() + torch.sin(x).sum() * 0


class Gather(Cache):
    """Reads its buffer through an XNNPACK delegate, then writes it back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.copy_(torch.sigmoid(self.cache + x) * 2.0)
        return torch.sigmoid(self.cache) + x


class Roll(Cache):
    """Its only operators are delegated: a delegate reads the buffer and gives what is copied
    back into it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = torch.cat([self.cache[1:], torch.sigmoid(self.cache[:1] + x)], 0)
        self.cache.copy_(new)
        return torch.relu(new * 2.0)


class Tick(Cache):
    """Takes no input."""

    def forward(self) -> torch.Tensor:
        self.cache.copy_(torch.cos(self.cache) + self.cache)
        return torch.relu(self.cache)


class Row(Cache):
    """Writes a part of its buffer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache[torch.tensor([1, 3])] = (x * 2.0).expand(2, 8)
        return torch.relu(self.cache * 3.0)


class Loop(nn.Module):
    def forward(self, xs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch_map(lambda x, z: x * 2 + z, xs, y)
        return made


class ManyOutputs(nn.Module):
    """Operators that give more than one tensor, and views of what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left, right = self.norm(x).split(16, dim=1)
        first, second = x.unbind(0)
        values, indices = x.topk(3)
        return left + right, first + second, values, indices, x.max(1).values.view(1, 2) + 1


class Patched(nn.Module):
    """Writes into what it computed."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, z = x * 2, torch.zeros(2, 32)
        y[:, torch.tensor([0, 1])] = 5.0
        y[0, 3] = 1.0
        z[:, 2:4] = x[:, :2]
        return y.view(4, 16) + 1, z


class Counter(nn.Module):
    """A buffer that starts at something else than zero."""

    count: torch.Tensor

    def __init__(self, start: float = 7.0) -> None:
        super().__init__()
        self.register_buffer("count", torch.full((4,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(x)
        return self.count * 1.0


def portable(
    model: nn.Module | Mapping[str, nn.Module],
    args: tuple[torch.Tensor, ...],
    *,
    name: str = "forward",
    dynamic: Any = None,
    constants: Mapping[str, Any] | None = None,
    share: bool = False,
    names: bool | None = None,
    passes: tuple[Any, ...] = (),
    reinplace: bool = False,
) -> bytes:
    """A program without delegates. share: plan mutable buffers into memory 2; names: emit their
    names (None: if shared); reinplace: write into them directly where that is possible."""
    models = model if isinstance(model, Mapping) else {name: model}
    edge = to_edge(
        {
            method: export(one.eval(), args, dynamic_shapes=dynamic)
            for method, one in models.items()
        },
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
        constant_methods=dict(constants) if constants else None,
    )
    config = ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=share),
        emit_mutable_buffer_names=share if names is None else names,
        passes=list(passes),
        run_reinplace_pass=reinplace,
    )
    return bytes(edge.to_executorch(config).buffer)


def xnnpack(
    models: Mapping[str, tuple[nn.Module, tuple[torch.Tensor, ...]]],
    *,
    share: bool = False,
    **dynamic: Any,
) -> bytes:
    """A program that XNNPACK runs as far as it can. share: as in `portable`."""
    programs = {
        name: export(model.eval(), args, dynamic_shapes=dynamic.get(name))
        for name, (model, args) in models.items()
    }
    lowered = to_edge_transform_and_lower(
        programs, partitioner={name: [XnnpackPartitioner()] for name in models}
    )
    config = ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=share),
        emit_mutable_buffer_names=share,
    )
    return bytes(lowered.to_executorch(config).buffer)


ROW = (torch.linspace(-1, 1, 64).reshape(2, 32),)
WIDE = (torch.linspace(-1, 1, 160).reshape(5, 32),)
ONE = (torch.tensor([2.0]),)
LOOP = (torch.arange(12.0).reshape(4, 3), torch.ones(3))
CUBES = (torch.arange(12.0).reshape(2, 3, 2), torch.ones(2, 2, 2))
ROWS = {"x": {0: Dim("rows", min=1, max=16)}}
CONSTANTS: dict[str, int | float | bool | str] = {
    "get_max_seq_len": 128,
    "is_good": True,
    "scale": 0.25,
    "title": "a name",
}


@cache
def case(name: str) -> bytes:
    """The bytes of the named program, made once a session."""
    return MAKERS[name]()


MAKERS: dict[str, Callable[[], bytes]] = {
    "mlp": lambda: portable(Mlp(), ROW),
    "twice": lambda: portable(Twice(), ROW, name="twice"),
    "other_mlp": lambda: portable(Mlp(seed=1), ROW),
    "dynamic": lambda: portable(Mlp(), WIDE, dynamic=ROWS),
    "branch": lambda: portable(Branch(), ROW),
    "cat": lambda: portable(Cat(), CUBES),
    "constants": lambda: portable(Mlp(), ROW, constants=CONSTANTS),
    "put": lambda: portable(Put(), ONE, name="put", share=True),
    "bump": lambda: portable(Bump(), ONE, name="bump", share=True),
    "peek": lambda: portable(Peek(), ONE, name="peek", share=True),
    "counter": lambda: portable(
        Counter(), ONE, share=True, passes=(InitializedMutableBufferPass(["count"]),)
    ),
    "counter_8": lambda: portable(
        Counter(8.0), ONE, share=True, passes=(InitializedMutableBufferPass(["count"]),)
    ),
    "wide_put": lambda: portable(Put(shape=(4, 9)), ONE, name="wide_put", share=True),
    "put_bump": lambda: portable({"put": Put(), "bump": Bump()}, ONE, share=True),
    "put_bump_unnamed": lambda: portable(
        {"put": Put(), "bump": Bump()}, ONE, share=True, names=False
    ),
    "put_in_work": lambda: portable(Put(), ONE, name="put"),
    "bump_in_work": lambda: portable(Bump(), ONE, name="bump"),
    "bump_in_work_named": lambda: portable(Bump(), ONE, name="bump", names=True),
    "gather": lambda: xnnpack({"gather": (Gather(), ONE)}),
    "roll": lambda: xnnpack({"roll": (Roll(), ONE)}, share=True),
    "row": lambda: xnnpack({"row": (Row(), ONE)}, share=True),
    "roll_in_work": lambda: xnnpack({"roll": (Roll(), ONE)}),
    "row_in_work": lambda: xnnpack({"row": (Row(), ONE)}),
    "row_in_place": lambda: portable(Row(), ONE, name="row", reinplace=True),
    "tick_in_work": lambda: portable(Tick(), (), name="tick"),
    "tick_xnnpack": lambda: xnnpack({"tick": (Tick(), ())}),
    "loop": lambda: portable(Loop(), LOOP),
    "loop_xnnpack": lambda: xnnpack({"forward": (Loop(), LOOP)}),
    "many_outputs": lambda: portable(ManyOutputs(), ROW),
    "many_outputs_xnnpack": lambda: xnnpack({"forward": (ManyOutputs(), ROW)}),
    "patched": lambda: portable(Patched(), ROW),
    "patched_xnnpack": lambda: xnnpack({"forward": (Patched(), ROW)}),
    "xnnpack": lambda: xnnpack({"mlp": (Mlp(), ROW), "twice": (Twice(), ROW)}),
    "xnnpack_twice": lambda: xnnpack({"again": (Twice(), ROW)}),
    "xnnpack_dynamic": lambda: xnnpack({"forward": (Mlp(), WIDE)}, forward=ROWS),
}

INPUTS: dict[str, dict[str, tuple[torch.Tensor, ...]]] = {
    "mlp": {"forward": ROW},
    "twice": {"twice": ROW},
    "other_mlp": {"forward": ROW},
    "dynamic": {"forward": WIDE},
    "branch": {"forward": ROW},
    "cat": {"forward": CUBES},
    "constants": {"forward": ROW, **dict.fromkeys(CONSTANTS, ())},
    "put": {"put": ONE},
    "bump": {"bump": ONE},
    "peek": {"peek": ONE},
    "counter": {"forward": ONE},
    "counter_8": {"forward": ONE},
    "wide_put": {"wide_put": ONE},
    "put_bump": {"put": ONE, "bump": ONE},
    "put_bump_unnamed": {"put": ONE, "bump": ONE},
    "put_in_work": {"put": ONE},
    "bump_in_work": {"bump": ONE},
    "bump_in_work_named": {"bump": ONE},
    "gather": {"gather": ONE},
    "roll": {"roll": ONE},
    "row": {"row": ONE},
    "roll_in_work": {"roll": ONE},
    "row_in_work": {"row": ONE},
    "row_in_place": {"row": ONE},
    "tick_in_work": {"tick": ()},
    "tick_xnnpack": {"tick": ()},
    "loop": {"forward": LOOP},
    "loop_xnnpack": {"forward": LOOP},
    "many_outputs": {"forward": ROW},
    "many_outputs_xnnpack": {"forward": ROW},
    "patched": {"forward": ROW},
    "patched_xnnpack": {"forward": ROW},
    "xnnpack": {"mlp": ROW, "twice": ROW},
    "xnnpack_twice": {"again": ROW},
    "xnnpack_dynamic": {"forward": WIDE},
}
"""What to call each method of each program with."""
