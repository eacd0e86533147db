"""Checks an XNNPACK delegate's graph: that XNNPACK can compute it with what it is given.

XNNPACK verifies the structure of its flatbuffer, and much of its nodes' parameters. It trusts
that each value is written once, and before it is read; that the arguments of the delegate's call
are of the datatypes that the graph says; and that shapes fit, which are computed here from the
arguments as XNNPACK computes them, by the rules of `xnnpack_shapes.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache

import attrs
from attrs import frozen

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.check_calls import is_constant
from mmpack.multimethod.link.schema import ELEMENT_SIZES, Dynamism, Skipped, Tensor
from mmpack.multimethod.link.xnnpack_datatypes import PLAIN, check_datatypes
from mmpack.multimethod.link.xnnpack_schema import BITS, INVALID_ID, Datatype, Graph
from mmpack.multimethod.link.xnnpack_shapes import allowed_flags, rule_of
from mmpack.multimethod.link.xnnpack_values import (
    INPUT,
    MAX_BYTES,
    MAX_RANK,
    OUTPUT,
    Dims,
    Value,
    read_values,
)

Nodes = Sequence[u.Node | Skipped | None]
Values = dict[int, Value]
"""By the ids that nodes refer to them with."""

WEIGHTS = ("filter_id", "bias_id")

WASTE = 1 << 26
"""Bytes. XNNPACK makes room for the dims that a graph declares even if it needs less; a value may
declare too much, but not more than this."""


def check_graph(graph: Graph, rooms: Sequence[int], calls: Sequence[Sequence[object]]) -> None:
    """Raises FormatError for the first thing in a graph that XNNPACK would stumble over.

    rooms: bytes by index of a constant. calls: the values that each call of the delegate is given.
    """
    if graph.xnodes is None or graph.xvalues is None:
        raise FormatError("has no nodes or no values")
    nodes = [stored.xnode_union for stored in graph.xnodes]
    values = read_values(graph, rooms)
    _check_weights(nodes, values)
    for given in [_given(values, arguments) for arguments in calls] or [dict(values)]:
        _walk(nodes, given)


def _given(values: Values, arguments: Sequence[object]) -> Values:
    """The values as a call makes them: with the dims of its arguments."""
    made = dict(values)
    for identity, value in values.items():
        if value.external < 0:
            continue
        what = f"external value {value.external}"
        if value.external >= len(arguments):
            raise FormatError(f"{what}: the call has {len(arguments)} arguments")
        argument = arguments[value.external]
        if not isinstance(argument, Tensor):
            raise FormatError(f"{what}: the call gives a {type(argument).__name__}, no tensor")
        datatype = Datatype.fp32 if value.nonbatch else value.datatype
        if BITS[datatype] > 8 * ELEMENT_SIZES[argument.scalar_type] or datatype not in PLAIN:
            name = Datatype(datatype).name
            raise FormatError(f"{what} is {name}, the call gives type {argument.scalar_type}")
        if value.flags & OUTPUT and is_constant(argument):
            raise FormatError(f"{what} is written, but the call gives a constant")
        sizes = argument.sizes or ()
        dims = tuple(sizes[place] for place in argument.dim_order or ())
        if len(dims) > MAX_RANK:
            raise FormatError(f"{what}: the call gives {len(dims)} dims, at most {MAX_RANK}")
        dynamic = argument.shape_dynamism != Dynamism.STATIC
        made[identity] = value.shaped(dims, dynamic)
    return made


def _check_weights(nodes: Nodes, values: Values) -> None:
    """ExecuTorch frees filters and biases once XNNPACK has packed them, whoever else reads them."""
    packed: dict[int, int] = {}
    for number, node in enumerate(nodes):
        if isinstance(node, n.FullyConnected | n.Convolution):
            packed |= dict.fromkeys((node.filter_id, node.bias_id), number)
            kinds = {values[i].static for i in (node.filter_id, node.bias_id) if i in values}
            if len(kinds) > 1:
                raise FormatError(f"node {number}: its filter is a constant, or its bias, not both")
    for number, node in enumerate(nodes):
        if node is None or isinstance(node, Skipped):
            continue
        for name in _ends(node).read:
            identity = getattr(node, name)
            if name in WEIGHTS or identity not in packed or identity not in values:
                continue
            if values[identity].static:
                raise FormatError(
                    f"node {number}, {type(node).__name__}, reads the weight of node "
                    f"{packed[identity]}, which ExecuTorch's runtime frees when it is packed"
                )


def _walk(nodes: Nodes, values: Values) -> None:
    """Follows the values through the nodes, in their order; fills in what each node makes."""
    known = {i for i, value in values.items() if value.static or value.flags & INPUT}
    computable = True
    for number, node in enumerate(nodes):
        if isinstance(node, Skipped):
            return  # of a newer schema; a runtime that does not know it refuses the graph
        try:
            if node is None:
                raise FormatError("is missing")
            inputs, outputs = _read(node, values, known), _written(node, values, known)
            # What a node without a rule makes is not known, nor what is made of that.
            computable = computable and rule_of(node) is not None
            if computable:
                _compute(node, inputs, outputs, values)
            known.update(outputs)
        except FormatError as error:
            name = type(node).__name__
            raise FormatError(f"node {number}, {name}: {error}") from None
    for identity, value in values.items():
        if value.flags & OUTPUT and identity not in known:
            raise FormatError(f"external value {value.external} is never written")


def _read(node: u.Node, values: Values, known: Collection[int]) -> list[Value]:
    inputs = []
    for name in _ends(node).read:
        identity = getattr(node, name)
        if identity == INVALID_ID and name == "bias_id":
            continue
        if identity not in values or identity not in known:
            raise FormatError(f"{name} {identity}: no value, or none that is written before")
        inputs.append(values[identity])
    return inputs


def _written(node: u.Node, values: Values, known: Collection[int]) -> list[int]:
    outputs: list[int] = []
    for name in _ends(node).written:
        identity = getattr(node, name)
        if identity not in values or identity in known or identity in outputs:
            raise FormatError(f"{name} {identity}: no value, or one that is written already")
        outputs.append(identity)
    return outputs


@frozen
class Ends:
    """The fields of a node that name the values that it reads, and those that it writes."""

    read: tuple[str, ...]
    written: tuple[str, ...]


def _ends(node: object) -> Ends:
    kind: type = type(node)
    return _ends_of(kind)


@cache
def _ends_of(kind: type) -> Ends:
    names = [field.name for field in attrs.fields(kind) if field.name.endswith("_id")]
    reads = [name for name in names if not name.startswith("output")]
    if issubclass(kind, n.Concatenate):
        reads = reads[: int(kind.__name__.removeprefix("Concatenate"))]
    return Ends(tuple(reads), tuple(name for name in names if name.startswith("output")))


def _compute(node: u.Node, inputs: list[Value], outputs: Iterable[int], values: Values) -> None:
    allowed = allowed_flags(node)
    if node.flags & ~allowed:
        raise FormatError(f"flags {node.flags:#x}, expected none but {allowed:#x}")
    check_datatypes(node, inputs, [values[identity] for identity in outputs])
    rule = rule_of(node)
    assert rule is not None
    dims = rule(node, inputs)
    dynamic = any(value.dynamic for value in inputs)
    for identity in outputs:
        made = values[identity].shaped(dims, dynamic)
        _check_room(values[identity], made)
        values[identity] = made


def _check_room(declared: Value, made: Value) -> None:
    """That what a node makes fits what the graph, or the call, has declared for it."""
    dims: Dims = made.dims
    if made.nbytes > MAX_BYTES:
        raise FormatError(f"makes dims {list(dims)}, at most {MAX_BYTES} bytes are believed")
    if declared.nbytes > max(made.nbytes, WASTE):
        raise FormatError(f"makes dims {list(dims)}, not {list(declared.dims)}")
    if made.nonbatch > len(dims):
        raise FormatError(f"{made.nonbatch} of {len(dims)} dims share a scale")
    fixed = declared.flags & OUTPUT and not made.dynamic and not declared.dynamic
    if fixed and declared.dims != dims:
        raise FormatError(
            f"makes dims {list(dims)} of external value {declared.external}, which the call "
            f"gives {list(declared.dims)}"
        )
