"""Exported program -> quantized exported program, in the worker that lowers it.

Post-training quantization with PT2E: the backend's quantizer annotates the graph, the calls that
calibration recorded run through it, and ranges become scales. Where a precision quantizes weights
alone, linear layers or embedding tables (`embeddings.py`) go through torchao's `quantize_` instead.

Source: torchao 0.18, `quantization/pt2e/quantize_pt2e.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.export import Dim as TorchDim
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from mmpack.multimethod.compile.calls import Call, Examples, read_calls, spread
from mmpack.multimethod.compile.composites import composites_listed_once
from mmpack.multimethod.compile.contents import Slice
from mmpack.multimethod.compile.embeddings import quantize_tables, tables_of
from mmpack.multimethod.compile.export import mark_as_state
from mmpack.multimethod.compile.scales import hold, read_scales
from mmpack.multimethod.compile.unused import drop_unused
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.scale import End, EndScales, Scale
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.targets import BACKENDS

MOST_CALLS = 256
"""At most so many calls of a method are run through its graph, from all over the samples. The
ranges at its ends are of all of them."""


@frozen
class Plan:
    """What a worker must know to quantize a method.

    tape, calls: where the calibration's calls are; none for a precision that needs none.
    buffers, before: names of state, and what is in it before each of the calls.
    ranges: end of the method -> least and largest value there, for ends where the calls of this
    method alone do not tell. state: buffers to be marked as state, see `mark_as_state`.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tape: Path | None = None
    calls: tuple[Call, ...] = ()
    buffers: tuple[str, ...] = ()
    before: tuple[Call, ...] = ()
    ranges: tuple[tuple[End, tuple[float, float]], ...] = ()
    state: tuple[str, ...] = ()

    def contents(self) -> Iterator[Slice]:
        """What it refers to on the tape."""
        for call in (*self.calls, *self.before):
            for place in call:
                yield Slice(place.hash, str(self.tape), place.offset, place.size)


def make_plan(signature: Signature, state: Collection[str], examples: Examples) -> Plan:
    """The plan of one method. `state`: its buffers that are to be marked as state."""
    name = signature.method
    recorded = examples.calls.get(name, ())
    before = examples.before.get(name, ((),) * len(recorded))
    chosen = spread(list(zip(recorded, before, strict=True)), MOST_CALLS)
    return Plan(
        inputs=tuple(value.name for value in signature.inputs),
        outputs=tuple(value.name for value in signature.outputs),
        tape=examples.tape if recorded else None,
        calls=tuple(call for call, _ in chosen),
        buffers=examples.buffers.get(name, ()),
        before=tuple(state for _, state in chosen),
        ranges=tuple(sorted(examples.ranges.get(name, {}).items())),
        state=tuple(sorted(state)),
    )


def content_of(plan: Plan | None) -> Any:
    """What of a plan decides what its object looks like, as plain data."""
    if plan is None:
        return None
    hashes = [[place.hash for place in call] for call in (*plan.calls, *plan.before)]
    return [hashes, PLAIN.unstructure(plan.ranges)]


def as_plain(scales: Mapping[End, tuple[Scale, ...]]) -> list[Any]:
    """Plain data for the figures of an object: [kind, name, [scale, …]] for each end."""
    return [[kind, name, PLAIN.unstructure(found)] for (kind, name), found in scales.items()]


def from_plain(plain: Any) -> tuple[EndScales, ...]:
    return PLAIN.structure(plain, tuple[EndScales, ...])


def quantize(
    program: ExportedProgram, method: str, backend: str, given: Mapping[str, Any], plan: Plan
) -> tuple[ExportedProgram, dict[End, tuple[Scale, ...]]]:
    """The program in the precision of its target, and the scales at its ends.

    Raises CompileError if nothing in it can be quantized: a precision is never silently left out.
    """
    target = BACKENDS[backend]
    options = target.options(given)
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    written = list(program.graph_signature.buffers_to_mutate.values())
    scales: dict[End, tuple[Scale, ...]] = {}
    if (quantizer := target.quantizer(options)) is not None:
        module = _post_training(module, quantizer, plan, written, program.example_inputs[0])
        scales = read_scales(module, plan.inputs, plan.outputs, frozenset([*written, *plan.state]))
        operators = [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
        done = any("quantize" in operator for operator in operators)
    elif (tables := target.embedding_weights(options)) is not None:
        done = quantize_tables(module, tables_of(program, plan.state), tables)
    else:
        done = _linear_weights(module, method, target.linear_weights(options), options)
    if not done:
        raise CompileError(
            f"{method}: {options.precision} quantizes nothing in it; give it a precision that is "
            "not quantized"
        )
    quantized = _exported(module, program)
    drop_unused(quantized)
    mark_as_state(quantized, frozenset(plan.state))
    return quantized, scales


def _post_training(
    module: GraphModule, quantizer: Any, plan: Plan, written: Sequence[str], example: Sequence[Any]
) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        prepared = prepare_pt2e(module, quantizer)
        kept = {n: attrgetter(n)(prepared).clone() for n in {*written, *plan.buffers}}
        if plan.tape is None:
            # Weights are looked at when they are computed with: a precision that has no use for
            # calls needs one all the same.
            prepared(*example)
        else:
            calls, before = read_calls(plan.tape, plan.calls), read_calls(plan.tape, plan.before)
            for inputs, state in zip(calls, before, strict=True):
                _put(prepared, dict(zip(plan.buffers, state, strict=True)))
                prepared(*inputs)
        _put(prepared, kept)
        hold(prepared, dict(plan.ranges), plan.inputs, plan.outputs)
        marks = _write_back(prepared, plan.state)
        converted = convert_pt2e(prepared)
    assert isinstance(converted, GraphModule)
    marked = [node for node in converted.graph.nodes if node.name in marks]
    assert len(marked) == len(marks), "torchao has renamed what was marked"
    for node in marked:
        converted.graph.erase_node(node)
    converted.recompile()
    return converted


def _write_back(module: GraphModule, buffers: Collection[str]) -> set[str]:
    """Have a method write buffers that it only reads, as they are: torchao takes the others for
    constants, and freezes what is in them now. Names of the nodes that do."""
    read = [n for n in module.graph.nodes if n.op == "get_attr" and n.target in buffers]
    with module.graph.inserting_before(module.graph.output_node()):
        copies = [module.graph.call_function(torch.ops.aten.copy_.default, (n, n)) for n in read]
    module.recompile()
    return {copy.name for copy in copies}


def _put(module: GraphModule, buffers: Mapping[str, torch.Tensor]) -> None:
    for name, value in buffers.items():
        attrgetter(name)(module).copy_(value)


def _linear_weights(module: GraphModule, method: str, config: Any, options: Any) -> bool:
    """`quantize_` knows layers, not operators: each linear operator becomes a layer again."""
    from torchao.quantization.quant_api import quantize_

    linear = [n for n in module.graph.nodes if n.target is torch.ops.aten.linear.default]
    made = 0
    for number, node in enumerate(linear):
        if any(isinstance(a, Node) and a.op != "get_attr" for a in node.args[1:]):
            continue  # its weight is computed
        layer = _layer(module, node)
        if layer.in_features % options.group:
            raise CompileError(
                f"{method}: the {layer.in_features} inputs of its weight {node.args[1].target!r} "
                f"are no multiple of {options.group}, the `group` that shares a scale at "
                f"{options.precision}"
            )
        name = f"_linear_{number}"
        module.add_submodule(name, layer)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(name, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        made += 1
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    quantize_(module, config)
    return made > 0


def _layer(module: GraphModule, node: Node) -> nn.Linear:
    held = [str(a.target) for a in node.args[1:] if isinstance(a, Node)]
    weight, *bias = [attrgetter(name)(module) for name in held]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(bias), device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias:
        layer.bias = nn.Parameter(bias[0].detach(), requires_grad=False)
    return layer


def _exported(module: GraphModule, before: ExportedProgram) -> ExportedProgram:
    """The module exported with the shapes, static and dynamic, of the program it was made from."""
    example = before.example_inputs
    assert example is not None
    dims: dict[Any, Any] = {}
    shapes = []
    for node in _user_inputs(before):
        value = node.meta["val"]
        shapes.append({axis: _dim(size, before, dims) for axis, size in enumerate(value.shape)})
    given = tuple({a: d for a, d in shape.items() if d is not None} for shape in shapes)
    program: ExportedProgram = torch.export.export(
        module, example[0], dynamic_shapes=(given,) if _varargs(module) else given, strict=False
    )
    with composites_listed_once():
        decomposed: ExportedProgram = program.run_decompositions({})
    for key in [key for key in decomposed.range_constraints if not key.is_Symbol]:
        del decomposed.range_constraints[key]  # see `export`
    return decomposed


def _varargs(module: GraphModule) -> bool:
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _user_inputs(program: ExportedProgram) -> list[Node]:
    names = list(program.graph_signature.user_inputs)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[str(name)] for name in names]


def _dim(size: Any, program: ExportedProgram, dims: dict[Any, Any]) -> Any:
    """The dynamic dim of an axis, one for each symbol; None for a static axis."""
    if isinstance(size, int):
        return None
    expression = size.node.expr
    (symbol,) = expression.free_symbols
    bounds = program.range_constraints[symbol]
    if symbol not in dims:
        dims[symbol] = TorchDim(str(symbol), min=int(bounds.lower), max=int(bounds.upper))
    step = int(expression / symbol)
    return dims[symbol] if step == 1 else step * dims[symbol]
