"""A program rewritten to single heads (`qnn_rewrite.py`), run beside itself as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.targets.qnn_attention import wants_conversion
from mmpack.multimethod.targets.qnn_nodes import held_by
from mmpack.multimethod.targets.qnn_rewrite import rewrite

if TYPE_CHECKING:
    from torch.export import ExportedProgram

APART = 1e-3
"""How far the rewritten program may be from what it was, as the norm of the difference over that of
the output. Sums are rounded otherwise, and at the edge between two quantized values that is a whole
step; a wrong split is off by 0.1 and more."""


def rewritten(program: ExportedProgram, method: str) -> dict[str, Any]:
    """Rewrite all attention of several heads in a program, in place, if there is any with its
    projections, and run the program before and after in PyTorch. Gives plain data for the manifest.

    Raises CompileError if a block still holds several heads, or the outputs differ.
    """
    heads = {"method": "rewrite", "found": 0, "converted": 0}
    if wants_conversion(program):
        tried = list(_inputs(program))
        before = [_outputs(program, inputs) for inputs in tried]
        heads["found"] = heads["converted"] = rewrite(program, method)
        after = [_outputs(program, inputs) for inputs in tried]
        apart = max(_apart(b, a) for b, a in zip(before, after, strict=True))
        if not apart <= APART:
            raise CompileError(
                f"{method}: its attention rewritten to single heads is off by {apart:.2g} from "
                f"what it was, in PyTorch, allowed {APART:.2g}: give the method a target without "
                "`mha2sha`"
            )
    return {"heads": heads}


def _inputs(program: ExportedProgram) -> Iterator[tuple[Any, ...]]:
    """The inputs that the program was exported with, and others, lest those be all alike."""
    import torch

    assert program.example_inputs is not None
    example = program.example_inputs[0]
    yield example
    generator = torch.Generator().manual_seed(11)
    yield tuple(
        torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x
        for x in example
    )


def _outputs(program: ExportedProgram, inputs: tuple[Any, ...]) -> list[Any]:
    """What a program gives in eager PyTorch, buffers that it changes among them."""
    import torch
    from torch.export.graph_signature import InputKind

    given = iter(inputs)
    arguments = [
        next(given) if spec.kind == InputKind.USER_INPUT else held_by(program, spec.target)
        for spec in program.graph_signature.input_specs
    ]
    with torch.no_grad():
        given_back = torch.fx.Interpreter(program.graph_module).run(*arguments)
    return [value for value in given_back if isinstance(value, torch.Tensor)]


def _apart(before: list[Any], after: list[Any]) -> float:
    worst = 0.0
    for expected, got in zip(before, after, strict=True):
        e, g = expected.double().nan_to_num(), got.double().nan_to_num()
        worst = max(worst, float((e - g).norm() / e.norm().clamp(min=1e-9)))
    return worst
