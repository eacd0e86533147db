"""Embedding tables as 8- or 4-bit integers.

A lookup in a float table becomes one in a table of integers, a row of which becomes float when it
is looked up: `quantized_decomposed::embedding_byte`, with a float32 scale for each row, or
`embedding_4bit`, two numbers a byte (the even one above) and a bfloat16 scale for each group of a
row; a float32 one would take a ninth more in groups of 32, for nothing that was measured. All
else that a method computes with stays float, also the same table where it is multiplied by: a
table that is tied to `lm_head` is then in the program twice, as integers and as that one's float32
weight.

An index beyond the table ends the process in the first of these kernels and reads foreign memory
in the second. So each index first looks up a zero, a byte for each row, with the float lookup's
own kernel, which answers with an error.

Source: ExecuTorch 1.5, `examples/models/llama/source_transformation/quantize.py`
(`EmbeddingQuantHandler`) and `kernels/quantized/cpu/embeddingxb.cpp`.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.targets import BACKENDS

_LOOKUP = torch.ops.aten.embedding.default


def tables_of(program: ExportedProgram, state: Collection[str]) -> dict[str, int]:
    """The float tables that a program looks up rows in: name -> length of a row. One that changes,
    or that is in `state`, is none: it could not be frozen into integers."""
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    changing = {*signature.buffers_to_mutate.values(), *state}
    tables = {}
    for node in program.graph.nodes:
        name = held.get(node.args[0].name) if node.target is _LOOKUP else None
        if name is not None and name not in changing:
            rows = node.args[0].meta["val"]
            if rows.is_floating_point():
                tables[name] = int(rows.shape[1])
    return tables


def require_tables(unit: Unit, program: ExportedProgram, state: Collection[str]) -> None:
    """Raise CompileError, with the spec's line, if a unit's precision is one of embedding tables
    and its program has none, or one whose rows do not make whole groups."""
    options = BACKENDS[unit.backend].options(unit.options)
    backend = BACKENDS[unit.backend]
    if backend.embedding_weights(options) is None:
        return
    key = "precision" if unit.spec.precision is not None else "target"
    tables = tables_of(program, state)
    if not tables:
        raise CompileError(
            unit.mistake(
                f"{options.precision} quantizes embedding tables, and the method looks up rows of "
                "none (torch.nn.Embedding); give it a precision that is not quantized",
                key,
            )
        )
    group = backend.embedding_group(options)
    for name, width in tables.items():
        if group is not None and width % group:
            raise CompileError(
                unit.mistake(
                    f"the {width} numbers in a row of its table {name!r} are no multiple of "
                    f"{group}, the `group` that shares a scale at {options.precision}",
                    key,
                )
            )


def quantize_tables(module: GraphModule, tables: Collection[str], config: Any) -> bool:
    """Have a program's module look up integers in place of these tables' floats, as torchao's
    `IntxWeightOnlyConfig` has them. Whether there was one to do it with."""
    from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401  (operators)

    made: dict[str, tuple[Any, ...]] = {}
    for node in list(module.graph.nodes):
        if node.target is not _LOOKUP or getattr(node.args[0], "target", None) not in tables:
            continue
        name = str(node.args[0].target)
        if name not in made:
            made[name] = _quantized(module, len(made), attrgetter(name)(module), config)
        _replace(module, node, *made[name])
    module.graph.eliminate_dead_code()
    module.recompile()
    return bool(made)


def _quantized(module: GraphModule, number: int, table: Tensor, config: Any) -> tuple[Any, ...]:
    """The operator for a table [rows, width], and names of its data in the module: the integers,
    [rows, width] int8 or [rows, width / 2] uint8; their scales, [rows, 1] float32 or [rows, groups]
    bfloat16; the zeros, [rows, 1] int8. Last, the least and largest of the integers."""
    from torchao.quantization.quant_api import quantize_

    layer = nn.Embedding(table.shape[0], table.shape[1], device="meta")
    layer.weight = nn.Parameter(table.detach().float(), requires_grad=False)
    quantize_(layer, config, lambda inside, _: isinstance(inside, nn.Embedding))
    weight: Any = layer.weight
    integers, scales = weight.qdata, weight.scale
    operators: Any = torch.ops.quantized_decomposed
    if config.weight_dtype is torch.int8:
        operator, bounds = operators.embedding_byte.dtype, (-128, 127)
    else:
        pairs = integers.add(8).view(torch.uint8).unflatten(1, (-1, 2))
        integers = (pairs[..., 0] << 4) | pairs[..., 1]
        scales = scales.bfloat16()
        operator, bounds = operators.embedding_4bit.dtype, (-8, 7)
    zeros = torch.zeros(table.shape[0], 1, dtype=torch.int8)
    names = []
    for part, data in (("integers", integers), ("scales", scales.contiguous()), ("zeros", zeros)):
        names.append(f"_table_{number}_{part}")
        module.register_buffer(names[-1], data)
    return operator, *names, *bounds


def _replace(
    module: GraphModule,
    node: Node,
    operator: Any,
    integers: str,
    scales: str,
    zeros: str,
    low: int,
    high: int,
) -> None:
    graph, indices, aten = module.graph, node.args[1], torch.ops.aten
    assert isinstance(indices, Node)
    with graph.inserting_before(node):
        if indices.meta["val"].dtype != torch.int64:  # which `embedding_byte` takes alone
            indices = graph.call_function(aten.to.dtype, (indices, torch.int64))
        zero = graph.call_function(_LOOKUP, (graph.get_attr(zeros), indices))
        zero = graph.call_function(aten.squeeze.dim, (zero, -1))
        checked = graph.call_function(aten.add.Tensor, (indices, zero))
        data = graph.get_attr(integers), graph.get_attr(scales), None
        dtype = node.meta["val"].dtype
        rows = graph.call_function(operator, (*data, low, high, checked), {"dtype": dtype})
    node.replace_all_uses_with(rows)
    graph.erase_node(node)
