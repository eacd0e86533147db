"""Which weights XNNPACK packs for a method, and what their packed form depends on besides bytes.

XNNPACK's cache of packed weights tells them apart by the key of the named data alone, a hash of the
bytes: the same bytes with other scales, or used by another node, would be taken for the same. So
methods are only to share packed weights that both describe alike.
"""

from __future__ import annotations

from typing import Any

import attrs

from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.xnnpack_blob import read_blob
from mmpack.multimethod.link.xnnpack_schema import Graph, QuantizedTensorValue, TensorValue


def packed_weights(file: PteFile, blob: Extent) -> dict[str, frozenset[str]]:
    """Key of named data -> what each use of it by XNNPACK's delegate data at `blob` looks like."""
    graph = read_blob(file, blob, str(file.path)).graph
    constants = {
        tensor.id_out: described
        for stored in graph.xvalues or ()
        if (tensor := _tensor(stored.xvalue_union)) is not None
        and (described := _described(graph, stored.xvalue_union, blob))
    }
    uses: dict[str, set[str]] = {}
    for stored in graph.xnodes or ():
        node: Any = stored.xnode_union
        if node is None:
            continue
        fields = {a.name: getattr(node, a.name) for a in attrs.fields(type(node))}
        how = {n: v for n, v in fields.items() if not n.endswith("_id")}
        given = {n: constants[v] for n, v in fields.items() if n.endswith("_id") and v in constants}
        for key, _ in given.values():
            if key:
                told = sorted((n, *described) for n, described in given.items())
                uses.setdefault(key, set()).add(f"{type(node).__name__} {how} {told}")
    return {key: frozenset(found) for key, found in uses.items()}


def _tensor(value: TensorValue | QuantizedTensorValue | None) -> TensorValue | None:
    return value.tensor_value if isinstance(value, QuantizedTensorValue) else value


def _described(
    graph: Graph, value: TensorValue | QuantizedTensorValue | None, blob: Extent
) -> tuple[str, str] | None:
    """The key of a constant, "" if it has none, and what is said of it; None if it is none."""
    tensor = _tensor(value)
    if tensor is None or not tensor.constant_buffer_idx:
        return None
    said = f"{tensor.datatype} {tensor.dims}"
    if isinstance(value, QuantizedTensorValue) and value.quant_params is not None:
        params = value.quant_params
        said += f" {params}"
        if index := getattr(params, "scale_buffer_idx", 0):
            # Without a key, these scales are this delegate's and nobody else's.
            said += f" scales {_key(graph, index) or (blob.offset, index)}"
        if getattr(params, "scale_bf16", None) is not None:
            said += f" in {blob.offset}"
    return _key(graph, tensor.constant_buffer_idx), said


def _key(graph: Graph, index: int) -> str:
    entries = graph.constant_data or []
    return (entries[index].named_key or "") if index < len(entries) else ""
