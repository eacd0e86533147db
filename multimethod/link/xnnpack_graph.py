"""Checks an XNNPACK delegate's graph: that XNNPACK can compute it with what it is given.

XNNPACK verifies the structure of its flatbuffer, and much of its nodes' parameters. It trusts
that each value is written once, and before it is read; that the arguments of the delegate's call
are of the datatypes that the graph says; and that shapes fit, which are computed here from the
arguments as XNNPACK computes them, by the rules of `xnnpack_shapes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import attrs
from attrs import evolve

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.check_calls import is_constant
from mmpack.multimethod.link.schema import ELEMENT_SIZES, Dynamism, Tensor
from mmpack.multimethod.link.xnnpack_schema import BITS, INVALID_ID, Datatype, Graph
from mmpack.multimethod.link.xnnpack_shapes import FLAGS, RULES
from mmpack.multimethod.link.xnnpack_values import (
    INPUT,
    MAX_BYTES,
    MAX_RANK,
    OUTPUT,
    Value,
    read_values,
)

FLOATS = (Datatype.fp32, Datatype.fp16, Datatype.bf16)
PLAIN = (*FLOATS, Datatype.qint8, Datatype.quint8, Datatype.int32)
"""Datatypes that nodes may compute with. The others are for weights, and what goes with them."""

WEIGHTED = (n.FullyConnected, n.Convolution, u.BatchMatrixMultiply)
"""Nodes with datatypes of their own, which XNNPACK checks, but for the input's."""

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
    values = read_values(graph, rooms)
    for arguments in calls:
        _run(graph, _given(values, arguments))
    if not calls:
        _run(graph, dict(values))


def _given(values: dict[int, Value], arguments: Sequence[object]) -> dict[int, Value]:
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
        made[identity] = evolve(value, dims=dims, dynamic=dynamic)
    return made


def _run(graph: Graph, values: dict[int, Value]) -> None:
    _check_weights(graph, values)
    known = {i for i, value in values.items() if value.static or value.flags & INPUT}
    for number, stored in enumerate(graph.xnodes or ()):
        node = stored.xnode_union
        if isinstance(node, n.ScaledDotProductAttention):
            return  # the runtime has none, and refuses the graph
        try:
            _node(node, values, known)
        except FormatError as error:
            name = type(node).__name__
            raise FormatError(f"node {number}, {name}: {error}") from None
    for identity, value in values.items():
        if value.flags & OUTPUT and identity not in known:
            raise FormatError(f"external value {value.external} is never written")


def _check_weights(graph: Graph, values: dict[int, Value]) -> None:
    """ExecuTorch frees filters and biases once XNNPACK has packed them, whoever else reads them."""
    packed: dict[int, int] = {}
    nodes = [stored.xnode_union for stored in graph.xnodes or ()]
    for number, node in enumerate(nodes):
        if isinstance(node, n.FullyConnected | n.Convolution):
            packed |= dict.fromkeys((node.filter_id, node.bias_id), number)
            kinds = {values[i].static for i in (node.filter_id, node.bias_id) if i in values}
            if len(kinds) > 1:
                raise FormatError(f"node {number}: its filter is a constant, or its bias, not both")
    for number, node in enumerate(nodes):
        for name in _ends(node)[0] if node is not None else ():
            identity = getattr(node, name)
            if name in WEIGHTS or identity not in packed or identity not in values:
                continue
            if values[identity].static:
                raise FormatError(
                    f"node {number}, {type(node).__name__}, reads the weight of node "
                    f"{packed[identity]}, which ExecuTorch's runtime frees when it is packed"
                )


def _node(node: u.Node | None, values: dict[int, Value], known: set[int]) -> None:
    if node is None:
        raise FormatError("is missing")
    if node.flags & ~FLAGS.get(type(node), 0):
        raise FormatError(f"flags {node.flags}")
    reads, writes = _ends(node)
    inputs = []
    for name in reads:
        identity = getattr(node, name)
        if identity == INVALID_ID and name == "bias_id":
            continue
        if identity not in values or identity not in known:
            raise FormatError(f"{name} {identity}: no value, or none that is written before")
        inputs.append(values[identity])
    outputs = [getattr(node, name) for name in writes]
    for identity in outputs:
        if identity not in values or identity in known:
            raise FormatError(f"output {identity}: no value, or one that is written already")
        known.add(identity)
    _datatypes(node, inputs, [values[identity] for identity in outputs])
    rule = RULES.get(type(node)) or RULES[type(node).__mro__[1]]
    dims = rule(node, inputs)
    dynamic = any(value.dynamic for value in inputs)
    for identity in outputs:
        declared = values[identity]
        made = evolve(declared, dims=dims, dynamic=dynamic)
        if made.nbytes > MAX_BYTES:
            raise FormatError(f"makes dims {list(dims)}, at most {MAX_BYTES} bytes are believed")
        if declared.nbytes > max(made.nbytes, WASTE):
            raise FormatError(f"makes dims {list(dims)}, not {list(declared.dims)}")
        if made.nonbatch > len(dims):
            raise FormatError(f"{made.nonbatch} of {len(dims)} dims share a scale")
        fixed = declared.flags & OUTPUT and not dynamic and not declared.dynamic
        if fixed and declared.dims != dims:
            raise FormatError(
                f"makes dims {list(dims)} of external value {declared.external}, which the call "
                f"gives {list(declared.dims)}"
            )
        values[identity] = made


def _ends(node: u.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fields of a node that name the values that it reads, and those that it writes."""
    kind: type = type(node)
    return _ends_of(kind)


@cache
def _ends_of(kind: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = [field.name for field in attrs.fields(kind) if field.name.endswith("_id")]
    reads = [name for name in names if not name.startswith("output")]
    if issubclass(kind, n.Concatenate):
        reads = reads[: int(kind.__name__.removeprefix("Concatenate"))]
    return tuple(reads), tuple(name for name in names if name.startswith("output"))


def _datatypes(node: object, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    for value in _wrong_datatypes(node, inputs, outputs):
        name = Datatype(value.datatype).name
        raise FormatError(f"value {value.number} is {name}, which does not go with the others")


def _wrong_datatypes(
    node: object, inputs: Sequence[Value], outputs: Sequence[Value]
) -> Iterator[Value]:
    first = inputs[0]
    if isinstance(node, WEIGHTED):
        if first.datatype not in (*PLAIN, Datatype.qdint8):
            yield first
    elif isinstance(node, u.Convert):
        if first.datatype not in PLAIN:
            yield first
        if outputs[0].datatype == Datatype.qdint8 and first.datatype not in FLOATS:
            yield outputs[0]
    else:
        rest = [] if isinstance(node, n.ArgMaxPooling2d) else outputs
        for value in (*inputs, *outputs[:1], *rest):
            if value.datatype not in PLAIN or value.datatype != first.datatype:
                yield value
    for value in outputs:
        if value.datatype not in (*PLAIN, *((Datatype.qdint8,) * isinstance(node, u.Convert))):
            yield value
