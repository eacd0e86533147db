"""Weights kept in half precision, and computed with in float32.

A program computes in float32, or in what its target quantizes to, and is compared with float32. A
checkpoint in half precision stays what it is all the same, since a float32 copy of a whole model
would take twice its memory:

- run eagerly, a module is given float32 copies of its own weights for the length of its call; an
  embedding, of those rows that the call looks up;
- exported, a unit is given float32 copies of its weights. Its program then refers to them in half
  precision again, and is so written for the worker, which widens them.

Nothing is rounded by that: float32 holds every number of either half precision.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

HALF = (torch.bfloat16, torch.float16)
_KEPT = "_kept_in_half_precision"
"""Attribute that a module has during its call."""


def compute_in_float32(root: nn.Module) -> None:
    """Have every module with weights in half precision, from `root` down, compute in float32."""
    for module in root.modules():
        if _half(module) and not _computes_in_float32(module):
            module.register_forward_pre_hook(_before, with_kwargs=True)
            module.register_forward_hook(_after, always_call=True)


@contextmanager
def in_float32(root: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Within the block the weights of those modules, from `root` down, are float32 that are to
    compute so. Gives address of the data of each copy -> what it is a copy of."""
    copies: dict[int, nn.Parameter] = {}
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in filter(_computes_in_float32, root.modules()):
            for name, weight in _half(module).items():
                if id(weight) not in copies:
                    copies[id(weight)] = _widened(weight)
                kept.append((module, name, weight))
                module._parameters[name] = copies[id(weight)]
        yield {copies[id(weight)].data_ptr(): weight for _, _, weight in kept}
    finally:
        for module, name, weight in kept:
            module._parameters[name] = weight


def let_go(program: ExportedProgram, copies: Mapping[int, torch.Tensor]) -> None:
    """Have a program refer to what its weights are copies of, see `in_float32`."""
    for name, tensor in program.state_dict.items():
        if tensor.numel():
            program.state_dict[name] = copies.get(tensor.data_ptr(), tensor)


def widen_program(program: ExportedProgram) -> None:
    """Give a program that was let go its weights in float32 again: those that its graph takes for
    float32 and that are not."""
    takes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    copies: dict[int, nn.Parameter] = {}
    for spec in program.graph_signature.input_specs:
        tensor = program.state_dict.get(spec.target or "")
        if tensor is None or tensor.dtype not in HALF:
            continue
        if takes[spec.arg.name].meta["val"].dtype == torch.float32:
            copy = copies.setdefault(id(tensor), _widened(tensor))
            program.state_dict[str(spec.target)] = copy


def kept_in_half(root: nn.Module) -> list[nn.Parameter]:
    """The weights, from `root` down, that are in half precision and computed with in float32; one
    that modules share, once."""
    modules = filter(_computes_in_float32, root.modules())
    return list({id(w): w for module in modules for w in _half(module).values()}.values())


def _computes_in_float32(module: nn.Module) -> bool:
    return _before in module._forward_pre_hooks.values()


def _half(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a module itself that are in half precision."""
    own = module._parameters.items()
    return {name: weight for name, weight in own if weight is not None and weight.dtype in HALF}


def _widened(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().float(), requires_grad=False)


def _before(module: nn.Module, args: Any, kwargs: Any) -> Any:
    kept: dict[str, Any] = dict(_half(module))
    if not kept:  # it is being exported
        return None
    looked_up = isinstance(module, nn.Embedding) and _looks_up(module, args, kwargs)
    if looked_up:
        rows, places = torch.unique(args[0], return_inverse=True)
        module._parameters["weight"] = _widened(kept["weight"][rows])
        # It must be one of the rows, and matters to gradients alone.
        kept["padding_idx"], module.padding_idx = module.padding_idx, None  # type: ignore[assignment]
    else:
        for name, weight in kept.items():
            module._parameters[name] = _widened(weight)
    object.__setattr__(module, _KEPT, kept)
    return ((places.to(args[0].dtype),), kwargs) if looked_up else None


def _after(module: nn.Module, args: Any, result: Any) -> None:
    for name, thing in vars(module).pop(_KEPT, {}).items():
        if isinstance(thing, nn.Parameter):
            module._parameters[name] = thing
        else:
            object.__setattr__(module, name, thing)


def _looks_up(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether an embedding is called with nothing but the rows to look up."""
    (first, *_) = inspect.signature(module.forward).parameters
    return len(args) == 1 and not kwargs and first in ("input", "input_ids")
