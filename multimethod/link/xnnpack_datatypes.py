"""Which datatypes go together in a node of an XNNPACK delegate's graph.

XNNPACK looks up most combinations itself, and refuses what it has no kernel for; it does not look
at what nodes that only move data are given, nor at all of what the others are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.xnnpack_schema import Datatype
from mmpack.multimethod.link.xnnpack_values import Value

FLOATS = (Datatype.fp32, Datatype.fp16, Datatype.bf16)

PLAIN = (*FLOATS, Datatype.qint8, Datatype.quint8, Datatype.int32)
"""Datatypes that nodes may compute with. The others are for weights, and what goes with them."""

DYNAMIC = (*PLAIN, Datatype.qdint8)
"""What `Convert` makes of floats, and nodes with weights take: rows with a scale of their own."""

WEIGHTED = (n.FullyConnected, n.Convolution, u.BatchMatrixMultiply)
"""Nodes whose weights may have other datatypes than their input; XNNPACK looks those up."""


def check_datatypes(node: object, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    """Raises FormatError for the first value of a node whose datatype does not fit the others'."""
    for value, allowed in _allowed(node, inputs, outputs):
        if value.datatype not in allowed:
            got = Datatype(value.datatype).name
            expected = " or ".join(datatype.name for datatype in allowed)
            raise FormatError(f"value {value.number} is {got}, expected {expected}")


def _allowed(
    node: object, inputs: Sequence[Value], outputs: Sequence[Value]
) -> Iterator[tuple[Value, Sequence[Datatype]]]:
    first = inputs[0]
    if isinstance(node, WEIGHTED):
        yield first, DYNAMIC
        # It crashes on weights that are no constants and of another datatype.
        same = (Datatype(first.datatype),)
        yield from ((value, same) for value in inputs[1:] if not value.static)
        yield from ((value, PLAIN) for value in outputs)
    elif isinstance(node, u.Convert):
        yield first, PLAIN
        yield outputs[0], DYNAMIC if first.datatype in FLOATS else PLAIN
    else:
        yield first, PLAIN
        same = (Datatype(first.datatype),)
        yield from ((value, same) for value in (*inputs[1:], *outputs[:1]))
        yield from ((value, PLAIN) for value in outputs[1:])  # indices of maxima
