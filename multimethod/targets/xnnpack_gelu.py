"""GELU's tanh form, written out before XNNPACK sees it.

ExecuTorch's delegate gives XNNPACK every GELU as the exact one, whatever its `approximate` says
(1.5, `backends/xnnpack/operators/op_gelu.py`): the two differ by up to 5e-4, in every layer of a
Gemma. Its parts XNNPACK computes as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

CUBIC = 0.044715
"""Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), section 2."""


def write_out_tanh_gelu(program: ExportedProgram) -> None:
    """Replace each GELU of that form by multiplications, additions and a tanh, in place."""
    import torch

    for node in list(program.graph.nodes):
        if (
            node.target is torch.ops.aten.gelu.default
            and node.kwargs.get("approximate", "none") == "tanh"
        ):
            _write_out(program, node)
    program.graph_module.recompile()


def _write_out(program: ExportedProgram, gelu: Node) -> None:
    import torch

    aten: Any = torch.ops.aten
    (x,) = gelu.args

    def node(operator: Any, *args: Any) -> Node:
        made: Node = program.graph.call_function(operator, args)
        made.meta["val"] = gelu.meta["val"]
        return made

    with program.graph.inserting_before(gelu):
        cube = node(aten.mul.Tensor, node(aten.mul.Tensor, x, x), x)
        inner = node(aten.add.Tensor, x, node(aten.mul.Tensor, cube, CUBIC))
        turned = node(aten.tanh.default, node(aten.mul.Tensor, inner, math.sqrt(2 / math.pi)))
        half = node(aten.mul.Tensor, x, 0.5)
        product = node(aten.mul.Tensor, half, node(aten.add.Tensor, turned, 1.0))
    gelu.replace_all_uses_with(product)
    program.graph.erase_node(gelu)
    # Where it is an output, the program's signature names it.
    product.name = gelu.name
