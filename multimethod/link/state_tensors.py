"""Which tensors of a method are state: buffers that a call finds as an earlier one left them.

A program may say so: `emit_mutable_buffer_names` names every such buffer, and initial data belong
to nothing else. Where it does not, it follows from two habits of ExecuTorch's emitter and planner:

  * Values are numbered as they are met: weights and buffers, then the inputs, then what is
    computed. So a planned tensor before the first input is a buffer.
  * Nothing else is ever planned where a buffer is. So planned memory that is used, and that no
    operator, delegate or caller fills, is a buffer.

A delegate does not tell which of its arguments it fills. In a method with inputs the first rule
does; in one without, what an operator later changes in place was not filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mmpack.multimethod.link.check_calls import VIEW, external, nbytes
from mmpack.multimethod.link.operators import WRITTEN, arguments_of
from mmpack.multimethod.link.schema import (
    DelegateCall,
    ExecutionPlan,
    KernelCall,
    MoveCall,
    Operator,
    OptionalTensorList,
    Tensor,
    TensorList,
)
from mmpack.multimethod.link.spans import Spans

FILLS_BY_ROWS = "executorch_prim::et_copy_index"
"""Writes a row of its first argument, the result of a loop, at each turn."""


def state_tensors(plan: ExecutionPlan) -> set[int]:
    """ids of the planned tensors that are state. Of state that the program does not tell, only
    what some instruction uses is found."""
    tensors = [v.val for v in plan.values or () if isinstance(v.val, Tensor) and is_planned(v.val)]
    told = {id(tensor) for tensor in tensors if is_told(tensor)}
    if any(name_of(tensor) and not external(tensor) for tensor in tensors):
        return told
    return told | {id(tensor) for tensor in _never_filled(plan)}


def is_planned(tensor: Tensor) -> bool:
    """Whether a tensor has room in a planned memory."""
    return tensor.allocation_info is not None and nbytes(tensor) > 0


def is_told(tensor: Tensor) -> bool:
    """Whether the program says of a planned tensor that it is state."""
    return bool(name_of(tensor) or tensor.data_buffer_idx)


def name_of(tensor: Tensor) -> str:
    """The name of the buffer in the model, if the program tells."""
    extra = tensor.extra_tensor_info
    return (extra.fully_qualified_name or "") if extra else ""


def _never_filled(plan: ExecutionPlan) -> Iterator[Tensor]:
    values = [value.val for value in plan.values or ()]
    first = min(plan.inputs or (0,))
    kept = set(range(first)) if plan.inputs else set(_changed_in_place(plan, values))
    filled, used = {*(plan.inputs or ())}, {*(plan.outputs or ())}
    for call in _calls(plan):
        if isinstance(call, MoveCall):
            used.add(call.move_from)
            filled.add(call.move_to)
        elif isinstance(call, DelegateCall):
            used.update(call.args or ())
            filled.update(set(call.args or ()) - kept)
        elif isinstance(call, KernelCall):
            used.update(call.args or ())
            filled.update(_filled_by((plan.operators or [])[call.op_index], call, values))
    memories: dict[int, list[Tensor]] = {}
    for _, tensor in _planned_among(values, filled):
        assert tensor.allocation_info is not None
        memories.setdefault(tensor.allocation_info.memory_id, []).append(tensor)
    spans = {memory: Spans(tensors) for memory, tensors in memories.items()}
    for index, tensor in _planned_among(values, used):
        assert tensor.allocation_info is not None
        taken = spans.get(tensor.allocation_info.memory_id, Spans(()))
        if index < first or taken.holding(tensor) is None:
            yield tensor


def _calls(plan: ExecutionPlan) -> Iterator[object]:
    for chain in plan.chains or ():
        for instruction in chain.instructions or ():
            yield instruction.instr_args


def _filled_by(operator: Operator, call: KernelCall, values: Sequence[object]) -> tuple[int, ...]:
    """Indices of the arguments that a call gives all their bytes.

    Arguments end with what is returned: an out argument a second time, or all of them as a list.
    """
    arguments, name = call.args or (), operator.name or ""
    if name == FILLS_BY_ROWS:
        return arguments[:1]
    if name == VIEW or _in_place(name):
        return ()
    last = values[arguments[-1]] if arguments else None
    if isinstance(last, TensorList):
        return last.items or ()
    return arguments[-1:] if arguments[-2:-1] == arguments[-1:] else ()


def _changed_in_place(plan: ExecutionPlan, values: Sequence[object]) -> Iterator[int]:
    for call in _calls(plan):
        if not isinstance(call, KernelCall):
            continue
        operator, arguments = (plan.operators or [])[call.op_index], call.args or ()
        known = arguments_of(f"{operator.name}.{operator.overload}".removesuffix("."))
        if known is not None and len(known) == len(arguments):
            written = {i for i, k in zip(arguments, known, strict=True) if k[0] in WRITTEN}
            yield from written - set(_filled_by(operator, call, values))
        elif _in_place(operator.name or ""):
            yield from arguments[:1]


def _in_place(name: str) -> bool:
    """Whether an operator changes its first argument, by PyTorch's way of naming them."""
    return name.endswith("_") and not name.endswith("__")


def _planned_among(
    values: Sequence[object], indices: Iterable[int]
) -> Iterator[tuple[int, Tensor]]:
    for index in sorted(indices):
        value = values[index]
        if isinstance(value, TensorList | OptionalTensorList):
            yield from _planned_among(values, [i for i in value.items or () if i >= 0])
        elif isinstance(value, Tensor) and is_planned(value):
            yield index, value
