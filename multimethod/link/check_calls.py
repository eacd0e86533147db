"""Checks what a method's calls are given: values of the right kind, tensors that have memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mmpack.multimethod.link.operators import WRITTEN, arguments_of, kinds_of
from mmpack.multimethod.link.schema import (
    ELEMENT_SIZES,
    DelegateCall,
    ExecutionPlan,
    KernelCall,
    Location,
    MoveCall,
    OptionalTensorList,
    ScalarType,
    Tensor,
    TensorList,
)

VIEW = "executorch_prim::et_view"
"""The operator whose last argument is a tensor that gets its memory from another."""

STRANGE = frozenset((12, 13, 14, 16, 17, 22, 23, 24, 25, 26))
"""Quantized types, bits and 8-bit floats: programs may hold them, but for delegates only."""

UNSIGNED = frozenset((27, 28, 29))
"""uint16, uint32, uint64: kernels promote them to no other type."""

PROMOTE = ("TTWr", "TTnWr", "TTs?Wr")
"""Arguments of the operators on two tensors, which need a common type."""

NOT_PROMOTING = ("aten::fill.Tensor_out", "aten::masked_select.out", "aten::masked_fill.Scalar_out")


def wrong_arguments(plan: ExecutionPlan) -> Iterator[str]:
    """What is wrong with the kernel calls of a plan whose indices have been checked.

    Values that the method itself makes (results of operators on numbers, targets of moves) may
    change their kind while it runs, so only whether they are tensors is held against them.
    """
    values = [value.val for value in plan.values or ()]
    made = _made(plan)
    for number, name, call in _kernel_calls(plan):
        expected = arguments_of(name)
        arguments = call.args or ()
        if expected is None or len(expected) != len(arguments):
            continue  # unknown, or refused by the runtime itself
        for place, (index, argument) in enumerate(zip(arguments, expected, strict=True)):
            kinds, value = kinds_of(argument), values[index]
            what = f"instruction {number}, {name}: argument {place}, value {index}"
            if kinds is None:
                continue
            plain = index in made and not isinstance(value, Tensor) and Tensor not in kinds
            if not isinstance(value, kinds) and not plain:
                wanted = " or ".join(kind.__name__ for kind in kinds)
                yield f"{what} is a {type(value).__name__}, expected {wanted}"
            if argument[0] in WRITTEN and any(is_constant(t) for t in _tensors(values, value)):
                yield f"{what} is written, but it is a constant"
        yield from _wrong_types(f"instruction {number}, {name}", name, expected, call, values)


def _wrong_types(
    what: str, name: str, expected: Sequence[str], call: KernelCall, values: Sequence[object]
) -> Iterator[str]:
    """Types that the kernels find no common type for, which ends the process."""
    read = [
        tensor
        for index, argument in zip(call.args or (), expected, strict=True)
        if argument[0] in "TLO"
        for tensor in _tensors(values, values[index])
    ]
    types = {tensor.scalar_type for tensor in read}
    strange = types & STRANGE
    if strange and name.startswith("aten::"):
        yield f"{what}: no kernel takes {ScalarType(min(strange)).name}"
    if len(types) > 1 and types & UNSIGNED and "".join(expected) in PROMOTE:
        names = ", ".join(ScalarType(one).name for one in sorted(types))
        if name not in NOT_PROMOTING:
            yield f"{what}: {names} have no common type"


def _made(plan: ExecutionPlan) -> set[int]:
    """Indices of values that a move or an operator's result may replace."""
    made: set[int] = set()
    for _, name, call in _kernel_calls(plan):
        expected = arguments_of(name) or ()
        arguments = call.args or ()
        if len(expected) == len(arguments):
            made |= {i for i, e in zip(arguments, expected, strict=True) if e == "r"}
        else:
            made |= set(arguments)
    for chain in plan.chains or ():
        for instruction in chain.instructions or ():
            if isinstance(instruction.instr_args, MoveCall):
                made.add(instruction.instr_args.move_to)
    return made


def _kernel_calls(plan: ExecutionPlan) -> Iterator[tuple[int, str, KernelCall]]:
    names = [f"{o.name}.{o.overload}" if o.overload else o.name for o in plan.operators or ()]
    for chain in plan.chains or ():
        for number, instruction in enumerate(chain.instructions or ()):
            call = instruction.instr_args
            if isinstance(call, KernelCall):
                yield number, names[call.op_index] or "", call


def _tensors(values: Sequence[object], value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, TensorList | OptionalTensorList):
        items = [values[index] for index in value.items or () if index >= 0]
        yield from (item for item in items if isinstance(item, Tensor))


def unfed_tensors(plan: ExecutionPlan) -> Iterator[str]:
    """Tensors without memory and data that are used, but that no caller, move or view fills."""
    fed = {*(plan.inputs or ()), *(plan.outputs or ())}
    used: dict[int, str] = {}
    operators = plan.operators or ()
    for chain in plan.chains or ():
        for number, instruction in enumerate(chain.instructions or ()):
            call = instruction.instr_args
            if isinstance(call, MoveCall):
                fed.add(call.move_to)
            elif isinstance(call, KernelCall | DelegateCall):
                arguments = call.args or ()
                if isinstance(call, KernelCall) and operators[call.op_index].name == VIEW:
                    fed |= set(arguments[-1:])
                for argument in arguments:
                    used.setdefault(argument, f"instruction {number}")
    for index, user in used.items():
        value = (plan.values or [])[index].val
        if index not in fed and isinstance(value, Tensor) and homeless(value) and nbytes(value):
            yield f"{user}: value {index} has no memory and no data, and is given none"


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor at its (upper bound) sizes."""
    return math.prod(tensor.sizes or ()) * ELEMENT_SIZES[tensor.scalar_type]


def is_constant(tensor: Tensor) -> bool:
    """Whether a tensor's data lie in this file or another, where nobody may write."""
    outside = external(tensor) or tensor.data_buffer_idx > 0
    return tensor.allocation_info is None and outside


def homeless(tensor: Tensor) -> bool:
    """Whether nothing says where a tensor's data are."""
    return tensor.allocation_info is None and not is_constant(tensor)


def external(tensor: Tensor) -> bool:
    """Whether a tensor's data are in another file (`.ptd`)."""
    extra = tensor.extra_tensor_info
    return extra is not None and extra.location == Location.EXTERNAL
