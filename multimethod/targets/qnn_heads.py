"""Multi-head attention to single heads (MHA2SHA): which attention a program holds, and how much of
it ExecuTorch's pass converted.

QNN runs attention best as one head a matmul; the pass makes that out of attention written with all
heads in one, while QNN preprocesses a program. It leaves what it does not recognize as it is, fails
on some forms and computes something else for others, so it is watched here, and what it made is
compared with the unconverted method later (`mmpack.multimethod.verify.heads`).

Source: ExecuTorch 1.5, `backends/qualcomm/_passes/convert_mha_to_sha.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from attrs import frozen

from mmpack.multimethod.errors import CompileError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

SOFTMAX = {"softmax", "_softmax", "_safe_softmax"}
PRODUCT = {"matmul", "bmm"}
LINEAR = {"linear", "addmm", "mm", "convolution", "conv1d", "conv2d"}
ADVICE = (
    "write it as the wrapper `attention_block` does, or give the method a target without `mha2sha`"
)


@frozen
class Block:
    """Attention of several heads: a product of two tensors that are computed, a softmax over it,
    and a product with that. `projected`: its query comes from a linear layer of the program."""

    name: str
    heads: int
    rank: int
    projected: bool


def find_blocks(program: ExportedProgram) -> tuple[Block, ...]:
    """All attention of more than one head in an exported program, quantized or not, in order."""
    constant = _constants(program)
    found = []
    for node in program.graph.nodes:
        query = _query(node, constant)
        if query is None:
            continue
        shape = query.meta["val"].shape
        heads = prod(shape[1:-2]) if len(shape) > 3 else prod(shape[:-2])
        if heads > 1:
            # A linear layer's output is viewed as heads, so it is not the query itself.
            projection = _first(query, _arguments, partial(_projects, constant), constant)
            found.append(Block(node.name, int(heads), len(shape), projection is not None))
    return tuple(found)


def wants_conversion(program: ExportedProgram) -> bool:
    """Whether a program holds attention with its projections, which is what can be converted."""
    return any(block.projected for block in find_blocks(program))


@contextmanager
def watched(program: ExportedProgram, method: str) -> Iterator[dict[str, Any]]:
    """Around the lowering of a program with the conversion switched on. What is given is filled at
    the end: `heads`, with the numbers of attention blocks `found` and `converted`.

    Raises CompileError if a block was found and not converted, or the conversion failed.
    """
    told: dict[str, Any] = {}
    blocks = find_blocks(program) if wants_conversion(program) else ()
    for block in blocks:
        if block.rank > 4:
            raise CompileError(
                f"{method}: the attention at {block.name!r} has scores of rank {block.rank}, and "
                f"what ExecuTorch makes of more than 4 crashes when it is run: {ADVICE}"
            )
    conversion = _Conversion()
    try:
        with conversion.recorded():
            yield told
    except Exception as error:
        if conversion.failure is None:
            raise
        failure = conversion.failure
        raise CompileError(
            f"{method}: ExecuTorch failed to convert its attention to single heads "
            f"({type(failure).__name__}: {failure}): {ADVICE}"
        ) from error
    if conversion.converted < len(blocks):
        names = ", ".join(f"{block.name} ({block.heads} heads)" for block in blocks)
        raise CompileError(
            f"{method}: of {len(blocks)} attention blocks ({names}) ExecuTorch converted "
            f"{conversion.converted} to single heads: {ADVICE}"
        )
    told["heads"] = {"found": len(blocks), "converted": conversion.converted}


class _Conversion:
    """How many blocks the pass converted, and what it failed with."""

    def __init__(self) -> None:
        self.converted = 0
        self.failure: Exception | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        from executorch.backends.qualcomm._passes.convert_mha_to_sha import ConvertMhaToSha

        run: Any = ConvertMhaToSha.call

        def call(self_: Any, graph_module: Any) -> Any:
            before = {
                node.name: int(node.meta["val"].shape[1])
                for node in graph_module.graph.nodes
                if _name(node) in SOFTMAX and node.meta["val"].dim() == 4
            }
            try:
                result = run(self_, graph_module)
            except Exception as error:
                self.failure = error
                raise
            after = {node.name for node in result.graph_module.graph.nodes}
            for name, heads in before.items():
                # The pass calls the parts of a node by its name and the number of the head.
                parts = {f"{name}_h_{head}" for head in range(heads)}
                self.converted += heads > 1 and parts <= after and name not in after
            return result

        ConvertMhaToSha.call = call
        try:
            yield
        finally:
            ConvertMhaToSha.call = run


def _query(node: Node, constant: set[Node]) -> Any:
    """The query, heads apart, of the attention that a node is the softmax of; else None."""
    if _name(node).lstrip("_").startswith("scaled_dot_product"):
        return node.args[0]
    if _name(node) not in SOFTMAX:
        return None
    product = partial(_is_product, constant)
    if _first(node, _users, product, constant) is None:
        return None
    scores = _first(node, _arguments, product, constant)
    return scores.args[0] if scores is not None else None


def _name(node: Any) -> str:
    """The bare name of a node's operator ("softmax" for aten.softmax.int), "" for other nodes."""
    if node.op != "call_function" or not hasattr(node.target, "_schema"):
        return ""
    return str(node.target.name()).rpartition("::")[2].partition(".")[0]


def _is_product(constant: set[Node], node: Node) -> bool:
    """Whether a node multiplies two tensors that are computed."""
    return _name(node) in PRODUCT and node.args[1] not in constant


def _projects(constant: set[Node], node: Node) -> bool:
    """Whether a node is a linear layer over all of a token, not one that turns each head."""
    if _name(node) in LINEAR:
        return any(argument in constant for argument in node.all_input_nodes)
    plain = _name(node) == "matmul" and node.args[1] in constant
    return plain and node.meta["val"].dim() <= 3


def _constants(program: ExportedProgram) -> set[Node]:
    """Nodes that are the same in every call: parameters, and what is computed from them alone."""
    signature = program.graph_signature
    fixed = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    fixed |= signature.inputs_to_lifted_tensor_constants
    constant: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr" or (node.op == "placeholder" and node.name in fixed):
            constant.add(node)
        elif node.op == "call_function" and node.all_input_nodes:
            constant |= {node} if constant.issuperset(node.all_input_nodes) else set()
    return constant


def _users(node: Node) -> list[Node]:
    return list(node.users)


def _arguments(node: Node) -> list[Node]:
    return list(node.all_input_nodes)


def _first(
    start: Node,
    follow: Callable[[Node], list[Node]],
    wanted: Callable[[Node], bool],
    constant: set[Node],
) -> Node | None:
    """The nearest wanted node, `start` not being one, that lies not behind another stage: a linear
    layer, a softmax or a product of two computed tensors. (A product by something constant, such
    as a rotation of each head, is no stage.)"""
    waiting, seen = follow(start), {start}
    while waiting:
        node = waiting.pop(0)
        if wanted(node):
            return node
        stage = _name(node) in SOFTMAX | LINEAR or _is_product(constant, node)
        if node not in seen and not stage:
            waiting.extend(follow(node))
        seen.add(node)
    return None
