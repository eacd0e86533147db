"""Exported program -> object: partitioned for its backend, planned, and written as one `.pte`
that holds exactly one method. This runs in a worker process (see `worker.py`).

Source of the conventions: ExecuTorch 1.5, `exir/program/_program.py` (the stages) and
`exir/passes/memory_planning_pass.py` (mutable buffers in memory id 2, by name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig
from executorch.exir.lowered_backend_module import get_lowered_backend_modules
from executorch.exir.passes import MemoryPlanningPass
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from mmpack.multimethod.compile.composites import composites_listed_once
from mmpack.multimethod.errors import CompileError, TargetError, nearest
from mmpack.multimethod.targets import BACKENDS


@frozen
class Lowered:
    """What lowering tells: operators in all, those delegated, names of those left on the CPU, and
    what the backend tells besides."""

    operators: int
    delegated: int
    left: Mapping[str, int]
    extra: Mapping[str, Any]


def lower(
    program: ExportedProgram,
    method: str,
    backend: str,
    options: Mapping[str, Any],
    output: Path,
    io: str = "planned",
) -> Lowered:
    """Lower one exported program to `backend` and write the object to `output`. io: whose memory
    inputs and outputs are in, as in a spec.

    Raises CompileError if the backend takes none of the method's operators: a method is never
    silently left undelegated.
    """
    if backend not in BACKENDS:
        raise TargetError(f"no backend is called {backend!r}{nearest(backend, BACKENDS)}")
    target = BACKENDS[backend]
    given = target.options(options)
    prepared = target.prepare(program, method, given)
    with (
        composites_listed_once(),
        _weights_shared(program),
        target.watched(program, method, given) as seen,
    ):
        edge = target.edge(program, method, given)
    counts = _count(edge, method, {**prepared, **seen})
    if target.delegate and counts.operators and not counts.delegated:
        raise CompileError(
            f"{method}: {backend} took none of its {counts.operators} operators "
            f"({', '.join(sorted(counts.left))}); give it the target of a backend that can, "
            "such as portable"
        )
    planned = edge.to_executorch(
        ExecutorchBackendConfig(
            passes=[_initialised(edge.exported_program(method))],
            memory_planning_pass=MemoryPlanningPass(
                share_mutable_buffers=True,
                alloc_graph_input=io == "planned",
                alloc_graph_output=io == "planned",
            ),
            emit_mutable_buffer_names=True,
            # Rows of a buffer are written where they belong, rather than into a copy of all of it.
            run_reinplace_pass=True,
        )
    )
    with output.open("wb") as file:
        planned.write_to_file(file)
    return counts


@contextmanager
def _weights_shared(program: ExportedProgram) -> Iterator[None]:
    """Within the block a copy of a program, as executorch makes one of what it lowers, refers to
    the same weights: `copy` looks at a thing itself for how that is copied before it looks at its
    class. Parameters alone: no method writes to those."""
    shared = [w for w in program.state_dict.values() if type(w) is torch.nn.Parameter]
    try:
        for weight in shared:
            weight.__deepcopy__ = partial(_itself, weight)  # type: ignore[method-assign]
        yield
    finally:
        for weight in shared:
            vars(weight).pop("__deepcopy__", None)  # the same one may be there twice


def _itself(weight: torch.Tensor, memo: Any) -> torch.Tensor:
    return weight


def _initialised(program: ExportedProgram) -> Any:
    """A pass that has every mutable buffer start with the value it has in the model. All-zero
    ones need no data in the file: the runtimes hand out zeroed memory."""
    signature = program.graph_signature
    state = set(signature.buffers_to_mutate.values())
    names = {
        spec.arg.name
        for spec in signature.input_specs
        if spec.kind == InputKind.BUFFER
        and spec.target in state
        and torch.count_nonzero(_tensor(program, spec.target))
    }

    def mark(graph_module: GraphModule) -> PassResult:
        for node in graph_module.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                node.meta["et_init_buffer"] = True
        return PassResult(graph_module, True)

    return mark


def _tensor(program: ExportedProgram, name: str) -> torch.Tensor:
    table = program.state_dict if name in program.state_dict else program.constants
    tensor = table[name]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _count(edge: EdgeProgramManager, method: str, extra: Mapping[str, Any]) -> Lowered:
    graph_module = edge.exported_program(method).graph_module
    left: dict[str, int] = {}
    for name in _operators(graph_module):
        left[name] = left.get(name, 0) + 1
    delegated = sum(
        len(_operators(lowered.original_module.graph_module))
        for lowered in get_lowered_backend_modules(graph_module)
    )
    return Lowered(delegated + sum(left.values()), delegated, left, extra)


def _operators(graph_module: GraphModule) -> list[str]:
    """Names of the operators that compute something (not delegate calls, not tuple access)."""
    return [
        node.target.name()
        for node in graph_module.graph.nodes
        if node.op == "call_function"
        and hasattr(node.target, "_schema")
        and not node.target.name().startswith("executorch::")
    ]
