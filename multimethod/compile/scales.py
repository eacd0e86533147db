"""The scales at the ends of a method: what its inputs, outputs and state are quantized with.

A quantized method takes and gives floats; inside, each float that comes in is quantized first, and
each that goes out was quantized before. These functions find those places in the graph, before
conversion (observers, which `hold` makes use a given range) and after (`read_scales`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from mmpack.multimethod.scale import End, Scale

_MOVES = {
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.squeeze.dim,
    torch.ops.aten.squeeze.dims,
    torch.ops.aten.unflatten.int,
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.clone.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.slice.Tensor,
}
"""Operators that leave values as they are: what follows one has the scale of what is before it."""


def hold(
    prepared: GraphModule,
    ends: Mapping[End, tuple[float, float]],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> None:
    """Have the observers at some ends of a prepared method use these ranges, whatever they saw."""
    for end, (low, high) in ends.items():
        for node in _near(prepared, end, inputs, outputs, _is_observer(prepared)):
            observer = prepared.get_submodule(str(node.target))
            _replace(prepared, observer, _with_range(observer, low, high))


def read_scales(
    converted: GraphModule, inputs: tuple[str, ...], outputs: tuple[str, ...], state: frozenset[str]
) -> dict[End, tuple[Scale, ...]]:
    """The scales at the ends of a converted method. An end that stays float has none, one that is
    quantized differently for several of its readers has several."""
    ends = [
        *[("input", name) for name in inputs],
        *[("output", name) for name in outputs],
        *[("state", name) for name in sorted(state)],
    ]
    found = {}
    for end in ends:
        nodes = _near(converted, end, inputs, outputs, _is_quantize)
        scales = dict.fromkeys(_scale(node) for node in nodes)
        if scales:
            found[end] = tuple(scales)
    return found


def _near(
    module: GraphModule,
    end: End,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    wanted: Callable[[Node], bool],
) -> list[Node]:
    """The wanted nodes next to an end, with nothing but moves in between."""
    kind, name = end
    nodes = list(module.graph.nodes)
    if kind == "input":
        start = [n for n in nodes if n.op == "placeholder"][inputs.index(name)]
        return list(_after(start, wanted))
    if kind == "output":
        leaves = pytree.tree_leaves(module.graph.output_node().args[0])
        return list(_before(leaves[outputs.index(name)], wanted))
    found: list[Node] = []
    for node in nodes:
        if node.op == "get_attr" and node.target == name:
            found += _after(node, wanted)
            for user in node.users:
                if user.target is torch.ops.aten.copy_.default and user.args[0] is node:
                    found += _before(user.args[1], wanted)
    return found


def _after(node: Node, wanted: Callable[[Node], bool]) -> Iterator[Node]:
    for user in node.users:
        if wanted(user):
            yield user
        elif user.target in _MOVES:
            yield from _after(user, wanted)


def _before(node: Any, wanted: Callable[[Node], bool]) -> Iterator[Node]:
    if not isinstance(node, Node):
        return
    if wanted(node):
        yield node
    elif node.target in _MOVES or _named(node, "dequantize_per_tensor"):
        yield from _before(node.args[0], wanted)


def _is_observer(module: GraphModule) -> Callable[[Node], bool]:
    from torchao.quantization.pt2e import ObserverBase

    def observes(node: Node) -> bool:
        if node.op != "call_module":
            return False
        return isinstance(module.get_submodule(str(node.target)), ObserverBase)

    return observes


def _is_quantize(node: Node) -> bool:
    # One whose scale is computed at every call has no scale that could be told.
    return _named(node, "quantize_per_tensor") and not isinstance(node.args[1], Node)


def _named(node: Node, name: str) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name == f"quantized_decomposed::{name}"


def _scale(node: Node) -> Scale:
    scale, zero_point, low, high = (float(value) for value in node.args[1:5])  # type: ignore[arg-type]
    return Scale(scale, int(zero_point), int(low), int(high), _dtype(int(low), int(high)))


def _dtype(low: int, high: int) -> str:
    """The graph itself may keep 16 bits in an int32."""
    for name in ("uint8", "int8", "uint16", "int16"):
        holds = torch.iinfo(getattr(torch, name))
        if holds.min <= low and high <= holds.max:
            return name
    return "int32"


def _with_range(observer: Any, low: float, high: float) -> Any:
    """An observer that has seen these two values, and takes no notice of others.

    One that knows its scale beforehand (a sigmoid's output lies between 0 and 1) is left alone.
    """
    from torchao.quantization.pt2e import MinMaxObserver, UniformQuantizationObserverBase

    if not isinstance(observer, UniformQuantizationObserverBase) or observer.is_dynamic:
        return observer
    if observer.qscheme not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return observer
    made = MinMaxObserver(
        dtype=observer.dtype,
        qscheme=observer.qscheme,
        quant_min=observer.quant_min,
        quant_max=observer.quant_max,
        eps=float(observer.eps),
    )
    made.min_val, made.max_val = torch.tensor(low), torch.tensor(high)
    return made


def _replace(module: GraphModule, old: Any, new: Any) -> None:
    """In all its places: values that share a scale share an observer, under several names."""
    for name, child in list(module._modules.items()):
        if child is old:
            setattr(module, name, new)
