"""Which attention of several heads an exported program holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from attrs import frozen

from mmpack.multimethod.targets.qnn_nodes import operator, shape

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

SOFTMAX = {"softmax", "_softmax", "_safe_softmax"}
PRODUCT = {"matmul", "bmm"}
LINEAR = {"linear", "addmm", "mm", "convolution", "conv1d", "conv2d"}


@frozen
class Block:
    """Attention of several heads: a product of two tensors that are computed (`scores`), a softmax
    over it, and a product with that (`mixed`). PyTorch's own operator is all three in one node.
    `projected`: its query comes from a linear layer of the program."""

    softmax: Node
    scores: Node
    mixed: Node
    heads: int
    rank: int
    projected: bool

    @property
    def name(self) -> str:
        return self.softmax.name


def find_blocks(program: ExportedProgram) -> tuple[Block, ...]:
    """All attention of more than one head in an exported program, quantized or not, in order."""
    constant = _constants(program)
    found = []
    for node in program.graph.nodes:
        if (products := _products(node, constant)) is None:
            continue
        query: Any = products[0].args[0]
        size = shape(query)
        heads = prod(size[1:-2]) if len(size) > 3 else prod(size[:-2])
        if heads > 1:
            # A linear layer's output is viewed as heads, so it is not the query itself.
            projection = _first(query, _arguments, partial(_projects, constant), constant)
            found.append(Block(node, *products, heads, len(size), projection is not None))
    return tuple(found)


def wants_conversion(program: ExportedProgram) -> bool:
    """Whether a program holds attention with its projections, which is what can be converted."""
    return any(block.projected for block in find_blocks(program))


def _products(node: Node, constant: set[Node]) -> tuple[Node, Node] | None:
    """The products before and after a node that is the softmax of attention; else None."""
    if operator(node).lstrip("_").startswith("scaled_dot_product"):
        return node, node
    if operator(node) not in SOFTMAX:
        return None
    product = partial(_is_product, constant)
    scores = _first(node, _arguments, product, constant)
    mixed = _first(node, _users, product, constant)
    return (scores, mixed) if scores is not None and mixed is not None else None


def _is_product(constant: set[Node], node: Node) -> bool:
    """Whether a node multiplies two tensors that are computed."""
    return operator(node) in PRODUCT and node.args[1] not in constant


def _projects(constant: set[Node], node: Node) -> bool:
    """Whether a node is a linear layer over all of a token, not one that turns each head."""
    if operator(node) in LINEAR:
        return any(argument in constant for argument in node.all_input_nodes)
    plain = operator(node) == "matmul" and node.args[1] in constant
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
        stage = operator(node) in SOFTMAX | LINEAR or _is_product(constant, node)
        if node not in seen and not stage:
            waiting.extend(follow(node))
        seen.add(node)
    return None
