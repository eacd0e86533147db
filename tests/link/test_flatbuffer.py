"""Reading and writing the flatbuffer. Oracles: ExecuTorch's deserializer and its runtime."""

from __future__ import annotations

import gc
import struct
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import pytest
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link import PteFile
from mmpack.multimethod.link import schema as ours
from mmpack.multimethod.link.encode import encode
from mmpack.multimethod.link.fields import Field, fields_of
from mmpack.multimethod.link.flatbuffer import _Reader, decode
from mmpack.multimethod.link.write import Piece, Segment, write_pte

from .conftest import Pte, Stock, same
from .programs import INPUTS, MAKERS


def plain(value: Any) -> Any:
    """Records of either side as nested tuples, without what one side cannot tell apart: absent
    from empty, and enums from ints."""
    if value is None or value == [] or value == () or value == b"" or value == "":
        return None
    if attrs.has(type(value)):
        kind: Any = type(value)
        fields = sorted(f.name for f in fields_of(kind))
    elif hasattr(value, "__dataclass_fields__"):
        fields = sorted(value.__dataclass_fields__)
    elif isinstance(value, list | tuple | bytes | bytearray):
        return tuple(plain(item) for item in value)
    elif isinstance(value, bool | float | str):
        return value
    else:
        return int(value)
    shown = tuple((name, plain(getattr(value, name))) for name in fields)
    return type(value).__name__, tuple((n, v) for n, v in shown if v is not None)


@pytest.mark.parametrize("name", MAKERS)
def test_decodes_as_executorch_does(name: str, pte: Pte) -> None:
    data = pte(name).read_bytes()
    program, unknown = decode(data, ours.Program)
    with PteFile.open(pte(name)) as file:
        theirs = _flatbuffer_to_program(data[: file.program_size])
    assert not unknown
    assert plain(program) == plain(theirs)


@pytest.mark.parametrize("name", MAKERS)
def test_encoded_again_it_runs_the_same(
    name: str, pte: Pte, stock: Callable[[Path], Stock], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pte"
    with PteFile.open(pte(name)) as file:
        write_pte(copy, file.program, [Segment.of(Piece((file, e))) for e in file.segments])
    for method, inputs in INPUTS[name].items():
        expected = stock(pte(name)).run(method, inputs)
        assert same(stock(copy).run(method, inputs), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_encoding_is_deterministic_and_lossless(name: str, pte: Pte) -> None:
    program, _ = decode(pte(name).read_bytes(), ours.Program)
    data = encode(program)
    assert decode(bytes(data), ours.Program) == (program, ())
    assert encode(deepcopy(program)) == data


LIMITS = {"b": 7, "h": 15, "i": 31, "q": 63}
UNSIGNED = {"B": 8, "I": 32, "Q": 64}


def numbers(code: str) -> st.SearchStrategy[Any]:
    if code == "?":
        return st.booleans()
    if code == "d":
        return st.floats(allow_nan=False)
    if code in LIMITS:
        return st.integers(-(1 << LIMITS[code]), (1 << LIMITS[code]) - 1)
    return st.integers(0, (1 << UNSIGNED[code]) - 1)


def values(field: Field, draw: st.DrawFn) -> Any:
    if field.kind == "number":
        return draw(numbers(field.code))
    if field.kind != "span" and draw(st.integers(0, 3)) == 0:
        return None
    if field.kind == "numbers":
        return tuple(draw(st.lists(numbers(field.code), max_size=5)))
    if field.kind == "string":
        return draw(st.text(max_size=5))
    if field.kind == "bytes":
        return draw(st.binary(max_size=5))
    if field.kind == "span":
        return None
    if field.kind == "tables":
        return [record(field.classes[0], draw) for _ in range(draw(st.integers(0, 2)))]
    return record(draw(st.sampled_from(field.classes)), draw)


def record(table: type, draw: st.DrawFn) -> Any:
    return table(*(values(field, draw) for field in fields_of(table)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_program_survives(data: st.DataObject) -> None:
    program = data.draw(st.composite(lambda draw: record(ours.Program, draw))())
    back, unknown = decode(bytes(encode(program)), ours.Program)
    # repr, as -0.0 must not come back as 0.0
    assert repr(back) == repr(program) and not unknown


def test_inline_data_are_aligned_and_stay_in_the_file() -> None:
    program = ours.Program(constant_buffer=[ours.Buffer(b""), ours.Buffer(b"weights")])
    data = bytes(encode(program))
    empty, weights = decode(data, ours.Program)[0].constant_buffer or []
    assert empty.storage == ours.Span(empty.storage.offset, 0)  # type: ignore[union-attr]
    assert isinstance(weights.storage, ours.Span) and weights.storage.offset % 16 == 0
    assert data[weights.storage.offset :][:7] == b"weights"


def test_fields_of_a_newer_schema_are_remembered() -> None:
    @attrs.define
    class Program:
        version: ours.U32 = 0
        a: str | None = None
        b: str | None = None
        c: str | None = None
        d: str | None = None
        e: str | None = None
        f: str | None = None
        named_data: list[ours.NamedData] | None = None
        news: ours.U32 = 0

    _, unknown = decode(bytes(encode(Program(news=5))), ours.Program)
    assert unknown == ("Program.slot 8",)
    _, unknown = decode(bytes(encode(Program(version=1))), ours.Program)
    assert unknown == ()


def test_overlapping_vectors_are_not_followed_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector of tables that all point to one table with a long vector: 1 MB that reads as 60
    GB. It must be refused before that: each such table is read as 1 MB, and what is read in all
    may be some times the file."""
    count = 60_000
    data = bytearray(struct.pack("<I4s", 16, b"ET12"))
    data += struct.pack("<HHHHiI", 8, 8, 0, 4, 8, 4)  # Program: a vtable, and its execution_plan
    data += struct.pack("<I", count)
    plan = len(data) + 4 * count + 12
    for _ in range(count):
        data += struct.pack("<I", plan - len(data))
    data += struct.pack("<HHHHHHiI", 12, 8, 0, 0, 0, 4, 12, 4)  # ExecutionPlan with inputs
    data += struct.pack("<I", 240_000) + bytes(960_000)
    (one,) = (
        decode(
            bytes(data).replace(struct.pack("<I", count), struct.pack("<I", 1), 1), ours.Program
        )[0].execution_plan
        or []
    )
    assert one.inputs == (0,) * 240_000  # it is right but for that
    read = 0
    vector_of_numbers = _Reader.numbers

    def numbers(reader: _Reader, place: int, field: Field) -> tuple[Any, ...]:
        nonlocal read
        made = vector_of_numbers(reader, place, field)
        read += len(made) * field.size
        assert read < 6 * len(data)
        return made

    monkeypatch.setattr(_Reader, "numbers", numbers)
    with pytest.raises(FormatError, match="vectors overlap so often"):
        decode(bytes(data), ours.Program)
    assert read >= 960_000  # it was the long vector that was met


def calls_of(run: Callable[[], object]) -> int:
    """How many functions, Python's own included, are called in `run`."""
    count = 0

    def called(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # others hang functions of theirs on it
    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def test_the_work_of_reading_grows_with_the_methods_and_no_faster(pte: Pte) -> None:
    """A hundred methods of 500 values take 0.25 s on an idle core."""
    program, _ = decode(pte("dynamic").read_bytes(), ours.Program)
    (plan,) = program.execution_plan or []
    values = plan.values or []
    plan.values = [deepcopy(values[i % len(values)]) for i in range(100)]

    def work(methods: int) -> int:
        data = bytes(encode(attrs.evolve(program, execution_plan=[plan] * methods)))
        decode(data, ours.Program)  # what is remembered of layouts is, from here on
        return calls_of(lambda: decode(data, ours.Program))

    few, more, most = work(1), work(11), work(21)
    print(few, more, most, (more - few) / 1000)
    assert more - few == most - more
    assert (more - few) / 10 / len(plan.values) < 26  # 23.4; two tables and two vectors, mostly
