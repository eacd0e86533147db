"""Checks the arguments of a method's kernel calls against what the operators take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .operators import WRITTEN, arguments_of, kinds_of
from .schema import (
    ExecutionPlan,
    KernelCall,
    MoveCall,
    OptionalTensorList,
    Tensor,
    TensorList,
)


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
            if argument[0] in WRITTEN and any(_constant(t) for t in _tensors(values, value)):
                yield f"{what} is written, but it is a constant"


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


def _constant(tensor: Tensor) -> bool:
    return tensor.allocation_info is None and tensor.data_buffer_idx > 0
