"""XNNPACK's graphs: what its exporter makes is accepted, and what cannot work is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import executorch.backends.xnnpack.serialization as serialization
import pytest
from attrs import define, fields

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import open_program
from mmpack.multimethod.link import xnnpack_nodes as n
from mmpack.multimethod.link import xnnpack_schema as s
from mmpack.multimethod.link import xnnpack_union as u
from mmpack.multimethod.link.fields import fields_of
from mmpack.multimethod.link.schema import U32
from mmpack.multimethod.link.xnnpack_shapes import rule_of

from .conftest import Stock
from .mutate_xnnpack import Delegates
from .xnnpack_zoo import QUICK, ZOO, exported

FBS = Path(next(iter(serialization.__path__)), "runtime_schema.fbs").read_text()
FBS = re.sub(r"//[^\n]*", "", FBS)
THEIRS = {
    "XNNGraph": s.Graph,
    "_XNNNode1x1": n.Node1x1,
    "_XNNNode2x1": n.Node2x1,
    "_XNNCat": n.Concatenate,
    "_XNNNodeConv": n.Convolution,
    "_XNNPooling2D": n.Pooling,
    "XNNTensorValue": s.TensorValue,
    "XNNQuantizedTensorValue": s.QuantizedTensorValue,
}
CODES = {"uint": "I", "int": "i", "uint64": "Q", "float": "f", "XNNDatatype": "h"}


def ours(table: str) -> type:
    for module in (n, u, s):
        found = THEIRS.get(table) or vars(module).get(table.removeprefix("XNN"))
        if found is not None:
            return found
    raise AssertionError(f"no class for {table}")


def test_tables_are_those_of_the_schema() -> None:
    tables = re.findall(r"table (\w+) \{(.*?)\}", FBS, re.S)
    assert len(tables) > 25
    for name, body in tables:
        theirs = re.findall(r"(\w+)\s*:\s*\[?(\w+)\]?", re.sub(r"\(.*?\)", "", body))
        mine = fields_of(ours(name))
        assert [field.name for field in mine] == [field for field, _ in theirs], name
        for field, (_, kind) in zip(mine, theirs, strict=True):
            if field.kind in ("number", "numbers"):
                assert field.code == CODES[kind], f"{name}.{field.name}"


def test_unions_are_those_of_the_schema() -> None:
    unions = {
        name: re.findall(r"(\w+)(?:\s*:\s*(\w+))?\s*,", body)
        for name, body in re.findall(r"union (\w+) \{(.*?)\}", FBS, re.S)
    }
    assert get_args(u.Node) == tuple(ours(tag) for tag, _ in unions["XNodeUnion"])
    for tag, table in unions["XNodeUnion"]:
        assert issubclass(ours(tag), ours(table or tag))
    (values,) = fields_of(s.XValue)
    assert values.classes == tuple(ours(tag) for tag, _ in unions["XValueUnion"])
    (_, params) = fields_of(s.QuantizedTensorValue)
    assert set(params.classes) == {ours(tag) for tag, _ in unions["XNNQuantParams"]}
    assert [params.classes.index(ours(tag)) for tag, _ in unions["XNNQuantParams"]] == [0, 1, 2, 3]


def test_datatypes_are_those_of_the_schema() -> None:
    theirs = dict(re.findall(r"xnn_datatype_(\w+) = (\d+)", FBS))
    assert {d.name: d.value for d in s.Datatype} == {
        name: int(value) for name, value in theirs.items() if name != "invalid"
    }


def attention(mask: int) -> n.ScaledDotProductAttention:
    return n.ScaledDotProductAttention(0, 0, 0, 0, mask, output_id=3)


def test_nodes_have_rules() -> None:
    """All that the schema has but the one that ExecuTorch's runtime has not."""
    without = [kind for kind in get_args(u.Node) if rule_of(kind()) is None]
    assert without == [n.ScaledDotProductAttention]


@define
class Newer:
    """A node that a newer exporter may write."""

    input_id: U32 = 77
    flags: U32 = 4


@define
class NewerXNode:
    xnode_union: u.Node | Newer | None = None
    debug_handle: U32 = 0


@pytest.mark.parametrize("unknown", [attention(mask=0), Newer()])
def test_unknown_nodes_pass(unknown: Any, tmp_path: Path, stock: Callable[[Path], Stock]) -> None:
    """What such a node makes is not known here; the runtime refuses the graph, and lives."""
    original, path = tmp_path / "original.pte", tmp_path / "x.pte"
    original.write_bytes(exported("linear rows"))

    def damage(graph: s.Graph) -> None:
        graph.xnodes = [NewerXNode(unknown)]  # type: ignore[list-item]

    Delegates(original).rewritten(path, 0, damage)
    open_program(path).close()
    with pytest.raises(RuntimeError):
        stock(path).run("linear rows", ZOO["linear rows"].args)


@pytest.mark.parametrize(
    "name", [pytest.param(z, marks=() if z in QUICK else pytest.mark.slow) for z in ZOO]
)
def test_accepted(name: str, tmp_path: Path, stock: Callable[[Path], Stock]) -> None:
    """Programs that the stock runtime runs, at the sizes that they were exported with."""
    path = tmp_path / "x.pte"
    path.write_bytes(exported(name))
    open_program(path).close()
    assert Delegates(path).graphs
    assert stock(path).run(name, ZOO[name].args)


def node(graph: s.Graph, kind: type) -> Any:
    return next(x.xnode_union for x in graph.xnodes or () if isinstance(x.xnode_union, kind))


def value(graph: s.Graph, number: int) -> Any:
    found = (graph.xvalues or [])[number].xvalue_union
    return found.tensor_value if isinstance(found, s.QuantizedTensorValue) else found


def static(graph: s.Graph) -> Any:
    """The first constant."""
    numbers = range(len(graph.xvalues or ()))
    return next(v for k in numbers if (v := value(graph, k)).constant_buffer_idx)


def put(record: Any, **values: Any) -> None:
    assert set(values) <= {field.name for field in fields(type(record))}
    for name, new in values.items():
        setattr(record, name, new)


WRONG: dict[str, tuple[str, Callable[[s.Graph], Any]]] = {
    "value 0: flags 4 with external id": ("image", lambda g: put(value(g, 0), flags=4)),
    "value 0: external id 9 is taken, or not there": (
        "linear rows",
        lambda g: put(value(g, 0), external_id=9),
    ),
    "external value 7: the call has 2 arguments": (
        "linear rows",
        lambda g: (put(value(g, 0), external_id=7), put(g, num_externs=8)),
    ),
    "value 1: id 0 is another value's": ("linear rows", lambda g: put(value(g, 1), id_out=0)),
    "has 7 dims, at most 6": ("image", lambda g: put(value(g, 0), dims=(1,) * 7)),
    "value 0: its datatype is 13": ("linear rows", lambda g: put(value(g, 0), datatype=13)),
    "its datatype is qint8, without quantization": (
        "linear rows",
        lambda g: put(value(g, 0), datatype=3),
    ),
    "needs 5120 bytes of constant 1, which has 512": (
        "linear rows",
        lambda g: put(static(g), dims=(80, 16)),
    ),
    "constant 99 does not exist, there are 3": (
        "linear rows",
        lambda g: put(static(g), constant_buffer_idx=99),
    ),
    "do not divide into groups of 48": (
        "4 bits rows",
        lambda g: put((g.xvalues or [])[2].xvalue_union.quant_params, group_size=48),  # type: ignore[union-attr]
    ),
    "needs 128 scales, there are 64": (
        "4 bits rows",
        lambda g: put((g.xvalues or [])[2].xvalue_union.quant_params, group_size=16),  # type: ignore[union-attr]
    ),
    "node 0, FullyConnected: input1_id 3: no value, or none that is written before": (
        "linear rows",
        lambda g: put(node(g, n.FullyConnected), input1_id=3),
    ),
    "node 0, FullyConnected: output_id 0: no value, or one that is written already": (
        "linear rows",
        lambda g: put(node(g, n.FullyConnected), output_id=0),
    ),
    "node 0, FullyConnected, reads the weight of node 0": (
        "linear rows",
        lambda g: put(node(g, n.FullyConnected), input1_id=1),
    ),
    "node 0, FullyConnected: flags 0x2, expected none but 0x1": (
        "linear rows",
        lambda g: put(node(g, n.FullyConnected), flags=2),
    ),
    "Conv2d: its filter has dims [8, 3, 3, 3], expected [8, 3, 4, 3]": (
        "image",
        lambda g: put(node(g, u.Conv2d), kernel_width=4),
    ),
    "Conv2d: subsampling height is 0": (
        "image",
        lambda g: put(node(g, u.Conv2d), subsampling_height=0),
    ),
    "has 3 channels, expected 6": (
        "image",
        lambda g: (
            put(node(g, u.Conv2d), group_input_channels=6),
            put(static(g), dims=(4, 3, 3, 6)),
            put(node(g, u.Conv2d), group_output_channels=4),
        ),
    ),
    "leaves nothing of": (
        "transposed",
        lambda g: put(node(g, u.ConvTranspose2d), padding_right=60),
    ),
    "a window of 50 on": ("pools", lambda g: put(node(g, u.AvgPooling2d), pooling_width=50)),
    "MaxPooling2d: windows": ("pools", lambda g: put(node(g, u.MaxPooling2d), stride_height=0)),
    "[0, 3, 1, 1] is no order of 4 dims": (
        "image",
        lambda g: put(node(g, n.StaticTranspose), perm=(0, 3, 1, 1)),
    ),
    "axis 4, expected one of 4 dims": ("shapes", lambda g: put(node(g, u.Concatenate3), axis=4)),
    "expected 4 each": ("shapes", lambda g: put(node(g, n.StaticConstantPad), pre_paddings=(1,))),
    "[1, 4, 8, 8] to [1, 4, 65]": (
        "shapes",
        lambda g: put(node(g, n.StaticReshape), new_shape=(1, 4, 65)),
    ),
    "takes 2 from 2 of a dim of 3": (
        "binary",
        lambda g: put(node(g, n.StaticSlice), offsets=(0, 2, 0), sizes=(2, 2, 4)),
    ),
    "do not fit": ("binary", lambda g: put(node(g, n.StaticTranspose), perm=(0, 1, 2))),
    "no nodes or no values": ("image", lambda g: put(g, xnodes=None)),
    "is never written": ("linear rows", lambda g: put(g, xnodes=[])),
    "node 0, Abs: value 0 is fp32, expected fp16": (
        "unary",
        lambda g: put(value(g, 1), datatype=2),
    ),
    "node 0, FullyConnected: value 1 is fp16, expected fp32": (
        "weights given",
        lambda g: put(value(g, 1), datatype=2),
    ),
    "node 0, ScaledDotProductAttention: mask_id 9: no value": (
        "linear rows",
        lambda g: put((g.xnodes or [])[0], xnode_union=attention(mask=9)),
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_refused(message: str, tmp_path: Path) -> None:
    name, damage = WRONG[message]
    original, path = tmp_path / "original.pte", tmp_path / "x.pte"
    original.write_bytes(exported(name))
    delegates = Delegates(original)
    refused = []
    for number in range(len(delegates.graphs)):
        try:
            delegates.rewritten(path, number, damage)
        except StopIteration:
            continue  # this delegate has no such node
        with pytest.raises(FormatError, match=re.escape(message)) as error:
            open_program(path)
        refused.append(str(error.value))
        break
    assert refused and refused[0].startswith(f"{path}: method '{name}': delegate ")


def test_graphs_of_sealed_programs_are_not_checked_again(tmp_path: Path) -> None:
    """They were when the program was linked; its checksum says that it is still the same."""
    original, path = tmp_path / "original.pte", tmp_path / "x.pte"
    original.write_bytes(exported("linear rows"))
    Delegates(original).rewritten(path, 0, lambda graph: put(graph, xnodes=None), sealed=True)
    open_program(path).close()
    with pytest.raises(FormatError, match="no nodes or no values"):
        open_program(path, integrity=False)
