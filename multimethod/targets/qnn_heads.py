"""Multi-head attention to single heads (MHA2SHA) by ExecuTorch's pass: how much of a
program's attention it converted.

QNN runs attention best as one head a matmul; the pass makes that out of attention written with all
heads in one, while QNN preprocesses a program. It leaves what it does not recognize as it is, fails
on some forms and computes something else for others, so it is watched here, and what it made is
compared with the unconverted method later (`mmpack.multimethod.verify.heads`).

Source: ExecuTorch 1.5, `backends/qualcomm/_passes/convert_mha_to_sha.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.errors import CompileError
from mmpack.multimethod.targets.qnn_attention import SOFTMAX, find_blocks, wants_conversion
from mmpack.multimethod.targets.qnn_nodes import operator

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ADVICE = (
    "write it as the wrapper `attention_block` does, or have mmpack convert it, `mha2sha: {method: "
    "rewrite}`, or give the method a target without `mha2sha`"
)


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
    told["heads"] = {"method": "pass", "found": len(blocks), "converted": conversion.converted}


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
                if operator(node) in SOFTMAX and node.meta["val"].dim() == 4
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
