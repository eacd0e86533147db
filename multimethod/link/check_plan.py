"""Checks one method of a program: its values, memory, delegates and instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

from attrs import define, field

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.check_calls import (
    homeless,
    is_constant,
    nbytes,
    unfed_tensors,
    wrong_arguments,
)
from mmpack.multimethod.link.schema import (
    ELEMENT_SIZES,
    Bool,
    BoolList,
    Chain,
    DataLocation,
    DelegateCall,
    Double,
    DoubleList,
    Dynamism,
    ExecutionPlan,
    FreeCall,
    Int,
    IntList,
    JumpFalseCall,
    KernelCall,
    Location,
    MoveCall,
    Null,
    OptionalTensorList,
    ScalarType,
    String,
    Tensor,
    TensorList,
)

MAX_ARENA = 1 << 40
"""Bytes. A method that asks for a larger memory is damaged, not large."""

MAX_RANK = 16
MAX_OPERATOR_NAME = 100
"""What the runtime has room for: name, dot, overload and the terminating zero."""


@define
class PlanCheck:
    """where: starts every message. constants, mutables: room in bytes by data_buffer_idx.
    inline: which inline delegate data exist. segments: how many the file has."""

    where: str
    plan: ExecutionPlan
    constants: Sequence[int]
    mutables: Sequence[int]
    inline: Sequence[bool]
    segments: int
    values: list[object] = field(factory=list)

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.where}: {message}")

    def run(self) -> None:
        plan = self.plan
        for name in ("values", "inputs", "outputs", "chains", "delegates"):
            if getattr(plan, name) is None:
                self.fail(f"has no {name}")
        self.values = [value.val for value in plan.values or ()]
        self.memory()
        for number, value in enumerate(self.values):
            self.value(number, value)
        self.ends()
        for number, delegate in enumerate(plan.delegates or ()):
            self.delegate(number, delegate)
        for number, operator in enumerate(plan.operators or ()):
            full = f"{operator.name}.{operator.overload}"
            if not operator.name or len(full.encode()) >= MAX_OPERATOR_NAME:
                self.fail(f"operator {number}: its name is {full!r}")
        if not plan.chains:
            self.fail("has no chain of instructions")
        for number, chain in enumerate(plan.chains):
            self.chain(f"chain {number}: " if len(plan.chains) > 1 else "", chain)
        for wrong in (*unfed_tensors(plan), *wrong_arguments(plan)):
            self.fail(wrong)

    def memory(self) -> None:
        sizes = self.plan.non_const_buffer_sizes
        if not sizes:
            self.fail("has no memory sizes")
        for number, size in enumerate(sizes):
            if not 0 <= size <= MAX_ARENA:
                self.fail(f"memory {number} has {size} bytes, at most {MAX_ARENA} are believed")
        for device in self.plan.non_const_buffer_device or ():
            if not 0 <= device.buffer_idx < len(sizes):
                self.fail(f"a device for memory {device.buffer_idx}, there are {len(sizes)}")

    def index(self, what: str, index: int, kinds: tuple[type, ...] | None = None) -> object:
        """The value at an index, which must exist and be of one of the kinds."""
        if not 0 <= index < len(self.values):
            self.fail(f"{what}: value {index} does not exist, there are {len(self.values)}")
        value = self.values[index]
        if kinds is not None and not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            self.fail(f"{what}: value {index} is a {type(value).__name__}, expected {names}")
        return value

    def value(self, number: int, value: object) -> None:
        what = f"value {number}"
        if value is None:
            self.fail(f"{what} is missing")
        if isinstance(value, Tensor):
            self.tensor(what, value)
        elif isinstance(value, String):
            if value.string_val is None:
                self.fail(f"{what}: string is missing")
        elif isinstance(value, IntList | TensorList | OptionalTensorList | DoubleList | BoolList):
            if value.items is None:
                self.fail(f"{what}: list is missing")
            if isinstance(value, IntList):
                for item in value.items:
                    self.index(f"{what}, an int list", int(item), (Int,))
            elif isinstance(value, TensorList | OptionalTensorList):
                optional = isinstance(value, OptionalTensorList)
                for item in value.items:
                    if not (optional and item == -1):
                        kinds = (Tensor, Null) if optional else (Tensor,)
                        self.index(f"{what}, a tensor list", item, kinds)

    def tensor(self, what: str, tensor: Tensor) -> None:
        if tensor.scalar_type not in ELEMENT_SIZES:
            self.fail(f"{what}: scalar type {tensor.scalar_type} is not known")
        sizes, order = tensor.sizes, tensor.dim_order
        if sizes is None or order is None:
            self.fail(f"{what}: has no sizes or no dim order")
        if len(sizes) > MAX_RANK or len(order) != len(sizes):
            self.fail(f"{what}: {len(sizes)} sizes (at most {MAX_RANK}), {len(order)} in dim order")
        if any(size < 0 for size in sizes):
            self.fail(f"{what}: sizes {list(sizes)} are negative")
        if sorted(order) != list(range(len(order))):
            self.fail(f"{what}: dim order {list(order)} is not a permutation")
        # Zero sizes may hide an overflow of the others, which strides are made of.
        if math.prod(max(size, 1) for size in sizes) * 16 >= 1 << 63:
            self.fail(f"{what}: sizes {list(sizes)} overflow")
        if tensor.storage_offset:
            self.fail(f"{what}: storage offset {tensor.storage_offset}, the runtime needs 0")
        if tensor.shape_dynamism not in (Dynamism.STATIC, Dynamism.DYNAMIC_BOUND):
            self.fail(f"{what}: shape dynamism {tensor.shape_dynamism} is not supported")
        allocation, extra, data = (
            tensor.allocation_info,
            tensor.extra_tensor_info,
            tensor.data_buffer_idx,
        )
        needed = nbytes(tensor)
        if allocation is not None:
            memories = self.plan.non_const_buffer_sizes or ()
            if not 1 <= allocation.memory_id < len(memories):
                self.fail(f"{what}: memory {allocation.memory_id}, of {len(memories)}")
            end, room = allocation.offset + needed, memories[allocation.memory_id]
            if end > room:
                self.fail(f"{what}: ends at byte {end} of memory {allocation.memory_id}: {room}")
        if extra is not None and extra.location != Location.SEGMENT:
            if extra.location != Location.EXTERNAL or not extra.fully_qualified_name:
                self.fail(f"{what}: its data are at location {extra.location}, without a name")
            return
        if data and extra is not None and extra.mutable_data_segments_idx:
            self.fail(f"{what}: initial data in list {extra.mutable_data_segments_idx}, not 0")
        if data:
            self.data(what, needed, data, mutable=allocation is not None)

    def data(self, what: str, needed: int, index: int, *, mutable: bool) -> None:
        rooms = self.mutables if mutable else self.constants
        kind = "initial data" if mutable else "constant"
        if index >= len(rooms):
            self.fail(f"{what}: {kind} {index} does not exist, there are {len(rooms)}")
        if needed > rooms[index]:
            self.fail(f"{what}: needs {needed} bytes of {kind} {index}, {rooms[index]} are there")

    def ends(self) -> None:
        plain = (Tensor, Int, Bool, Double, String, Null)
        for side, indices in (("input", self.plan.inputs), ("output", self.plan.outputs)):
            for number, index in enumerate(indices or ()):
                value = self.index(f"{side} {number}", index, plain)
                if side == "input" and isinstance(value, Tensor) and is_constant(value):
                    self.fail(f"input {number}: value {index} is a constant")

    def delegate(self, number: int, delegate: object) -> None:
        what = f"delegate {number}"
        name, reference = getattr(delegate, "id", None), getattr(delegate, "processed", None)
        if not name or reference is None:
            self.fail(f"{what}: has no backend or no data")
        inline = reference.location == DataLocation.INLINE
        count = len(self.inline) if inline else self.segments
        if reference.location not in (DataLocation.INLINE, DataLocation.SEGMENT):
            self.fail(f"{what}: its data are at location {reference.location}")
        if reference.index >= count or (inline and not self.inline[reference.index]):
            self.fail(f"{what}: its data {reference.index} do not exist, there are {count}")
        for spec in getattr(delegate, "compile_specs", None) or ():
            if spec.key is None or spec.value is None:
                self.fail(f"{what}: compile spec {spec.key!r} is not complete")

    def chain(self, prefix: str, chain: Chain) -> None:
        if chain.instructions is None:
            self.fail(f"{prefix}has no instructions")
        for index in (*(chain.inputs or ()), *(chain.outputs or ())):
            self.index(f"{prefix}inputs and outputs", index)
        operators, delegates = self.plan.operators or (), self.plan.delegates or ()
        for number, instruction in enumerate(chain.instructions):
            what = f"{prefix}instruction {number}"
            call = instruction.instr_args
            if call is None:
                self.fail(f"{what} is missing")
            if isinstance(call, KernelCall | DelegateCall):
                kernel = isinstance(call, KernelCall)
                index = call.op_index if isinstance(call, KernelCall) else call.delegate_index
                known = len(operators if kernel else delegates)
                if not 0 <= index < known:
                    called = "operator" if kernel else "delegate"
                    self.fail(f"{what}: {called} {index} does not exist, there are {known}")
                if call.args is None:
                    self.fail(f"{what}: has no arguments")
                for argument in call.args:
                    self.index(what, argument)
            elif isinstance(call, MoveCall):
                kind = type(self.index(what, call.move_from))
                self.index(f"{what}: move from a {kind.__name__}", call.move_to, (kind,))
            elif isinstance(call, JumpFalseCall):
                condition = self.index(what, call.cond_value_index, (Tensor, Bool))
                if isinstance(condition, Tensor) and condition.scalar_type != ScalarType.bool:
                    self.fail(f"{what}: jumps on value {call.cond_value_index}, which is no bool")
                if not 0 <= call.destination_instruction <= len(chain.instructions):
                    to, end = call.destination_instruction, len(chain.instructions)
                    self.fail(f"{what}: jumps to {to}, there are {end} instructions")
            elif isinstance(call, FreeCall):
                freed = self.index(what, call.value_index, (Tensor,))
                given = call.value_index in (self.plan.inputs or ())
                if given or not isinstance(freed, Tensor) or not homeless(freed):
                    self.fail(f"{what}: frees value {call.value_index}, whose memory is planned")
