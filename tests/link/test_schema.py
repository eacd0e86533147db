"""Our records against ExecuTorch's: its generated readers, its dataclasses, its scalar types."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest
import torch
from executorch.exir import schema as theirs
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import KernelCall
from executorch.runtime import Runtime

from mmpack.multimethod.link import operators, schema
from mmpack.multimethod.link.fields import fields_of
from mmpack.multimethod.signature import DTYPES

from .programs import case

GENERATED = "executorch.exir._serialize.generated.executorch_flatbuffer"
TABLES = [
    name
    for name, value in vars(schema).items()
    if inspect.isclass(value)
    and hasattr(value, "__attrs_attrs__")
    and name not in ("Span", "Skipped")
]


@pytest.mark.parametrize("name", TABLES)
def test_slots_are_those_of_the_generated_class(name: str) -> None:
    module = importlib.import_module(f"{GENERATED}.{name}")
    added = [
        function.removeprefix(f"{name}Add")
        for function in vars(module)
        if function.startswith(f"{name}Add") and function != f"{name}Add"
    ]
    ours: list[str] = []
    for field in fields_of(getattr(schema, name)):
        camel = "".join(part[:1].upper() + part[1:] for part in field.name.split("_"))
        ours += [f"{camel}Type", camel] if field.kind == "union" else [camel]
    assert ours == added


@pytest.mark.parametrize("name", [n for n in TABLES if hasattr(theirs, n)])
def test_fields_are_those_of_the_dataclass(name: str) -> None:
    ours = {field.name for field in fields_of(getattr(schema, name))}
    assert ours == {field.name for field in dataclasses.fields(getattr(theirs, name))}


def test_every_table_of_theirs_is_one_of_ours() -> None:
    package = importlib.import_module(GENERATED)
    modules = {
        p.stem
        for path in package.__path__
        for p in __import__("pathlib").Path(path).glob("[A-Z]*.py")
    }
    enums = {
        "DataLocation",
        "DeviceType",
        "InstructionArguments",
        "KernelTypes",
        "ScalarType",
        "TensorDataLocation",
        "TensorShapeDynamism",
    }
    assert modules - enums == set(TABLES)


@pytest.mark.parametrize(
    ("union", "table", "field"),
    [("KernelTypes", "EValue", "val"), ("InstructionArguments", "Instruction", "instr_args")],
)
def test_union_tags(union: str, table: str, field: str) -> None:
    tags = vars(getattr(importlib.import_module(f"{GENERATED}.{union}"), union))
    (ours,) = (f for f in fields_of(getattr(schema, table)) if f.name == field)
    for number, cls in enumerate(ours.classes, 1):
        assert tags[cls.__name__] == number


def test_scalar_types() -> None:
    generated = importlib.import_module(f"{GENERATED}.ScalarType").ScalarType
    numbers = {v for k, v in vars(generated).items() if not k.startswith("_")}
    unlisted = {8, 9, 10}  # complex: not in the schema, but emitted and run
    assert numbers | unlisted == {int(t) for t in schema.ScalarType} == set(schema.ELEMENT_SIZES)
    for name, size in DTYPES.items():
        ours = schema.ScalarType[name]
        assert schema.ELEMENT_SIZES[ours] == size == getattr(torch, name).itemsize
    assert schema.ScalarType.bfloat16 == ScalarType.BFLOAT16
    assert schema.ScalarType.float32 == ScalarType.FLOAT


LETTERS = {
    "Tensor": "T",
    "int": "i",
    "float": "f",
    "bool": "b",
    "number": "n",
    "str": "s",
    "List[int]": "I",
    "List[float]": "F",
    "List[bool]": "B",
    "List[Tensor]": "L",
    "List[Optional[Tensor]]": "O",
}
WITHOUT_SCHEMA = {
    "executorch_prim::et_copy_index.tensor": "WTi",
    "executorch_prim::et_view.default": "TIr",
    "executorch_prim::floordiv.int": "nnr",
    "executorch_prim::mod.int": "nnr",
}


def _letters(operator: str) -> str:
    if operator in WITHOUT_SCHEMA:
        return WITHOUT_SCHEMA[operator]
    namespace, rest = operator.split("::")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    schema = getattr(packet, overload or "default")._schema
    made = ""
    for argument in schema.arguments:
        kind = str(argument.type)
        optional = kind.startswith("Optional[")
        letter = LETTERS[kind[9:-1] if optional else kind]
        if argument.alias_info is not None and argument.alias_info.is_write:
            letter = {"T": "W", "L": "M"}[letter]
        made += letter + "?" * optional
    return made + "r"


def test_operator_table_is_that_of_the_wheel() -> None:
    import executorch.exir.passes._quant_patterns_and_replacements
    import executorch.exir.passes.dim_order_ops_registry
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401

    names = Runtime.get().operator_registry.operator_names
    assert len(names) > 200
    for name in sorted(names):
        assert "".join(operators.arguments_of(name) or ()) == _letters(name), name


@pytest.mark.parametrize(
    "name", ["cat", "branch", "loop", "many_outputs", "patched", "put", "row_in_place"]
)
def test_operator_table_is_what_executorch_emits(name: str) -> None:
    """As many arguments as its emitter gives."""
    program = deserialize_pte_binary(case(name)).program
    for plan in program.execution_plan:
        for instruction in plan.chains[0].instructions:
            call = instruction.instr_args
            if isinstance(call, KernelCall):
                operator = plan.operators[call.op_index]
                full = ".".join(part for part in (operator.name, operator.overload) if part)
                assert len(operators.arguments_of(full) or ()) == len(call.args), full
