"""Holds a decoded program against everything that the C++ runtime would otherwise trust.

    file = open_program("model.pte")        # opened, checksum compared, checked

`flatbuffer.py` has made sure that the tables can be read; here every index, offset and size in
them is checked against what it refers to. What the runtime itself refuses is refused here too,
only with the file, the method, the value or instruction, what was expected and what is there.
Whether operators and backends exist where the program will run is not known here; the arguments
of ExecuTorch's own operators are (`operators.py`), and what XNNPACK's graphs refer to is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.check_plan import PlanCheck
from mmpack.multimethod.link.data_file import DataFile
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.integrity import check_integrity
from mmpack.multimethod.link.schema import SubsegmentOffsets
from mmpack.multimethod.link.xnnpack_blob import BACKEND, check_xnnpack


def open_program(
    path: str | os.PathLike[str],
    *,
    integrity: bool = True,
    fd: int | None = None,
    data: DataFile | None = None,
) -> PteFile:
    """Opens a `.pte` and checks it: its checksum, if it has one, then every reference in it.

    integrity: False skips the checksum (which reads the whole file, at several GB/s).
    fd: a descriptor to read from; `path` is then only what messages call it.
    data: what the program keeps outside, if that is known; closed with it.
    Raises FormatError. The caller closes the file.
    """
    try:
        file = PteFile.open(path, fd)
    except BaseException:
        if data is not None:
            data.close()
        raise
    file.data = data
    try:
        sealed = integrity and check_integrity(file)
        check_program(file, delegates=not sealed)
    except BaseException:
        file.close()
        raise
    return file


def check_program(file: PteFile, *, delegates: bool = True) -> None:
    """Raises FormatError for the first thing in the program that cannot be right.

    delegates: False leaves out what delegates have of their own: XNNPACK's graphs, which can be
    larger than the program. Those of a file whose checksum is right were checked, or made, by
    whoever wrote it.
    """
    program = file.program

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{file.path}: {message}")

    segments = file.segments
    constant = program.constant_segment
    if constant is not None and len(constant.offsets or ()) > 1:
        if program.constant_buffer:
            fail("constants both in a segment and in the flatbuffer")
        if constant.segment_index >= len(segments):
            fail(_range("constant segment", constant.segment_index, len(segments)))
    for number, mutable in enumerate(program.mutable_data_segments or ()):
        if mutable.segment_index >= len(segments):
            fail(_range(f"mutable data {number}: segment", mutable.segment_index, len(segments)))
    keys: set[str] = set()
    for named in program.named_data or ():
        if not named.key:
            fail("named data without a key")
        if named.key in keys:
            fail(f"named data {named.key!r} is there twice")
        if named.segment_index >= len(segments):
            fail(_range(f"named data {named.key!r}: segment", named.segment_index, len(segments)))
        keys.add(named.key)
    if not program.execution_plan:
        fail("has no method")
    names: set[str] = set()
    constants, mutables = constant_rooms(file), mutable_rooms(file)
    for number, plan in enumerate(program.execution_plan):
        if not plan.name or "\0" in plan.name:
            fail(f"method {number}: its name is {plan.name!r}")
        if plan.name in names:
            fail(f"method {plan.name!r} is there twice")
        names.add(plan.name)
        stored = program.backend_delegate_data or []
        PlanCheck(
            where=f"{file.path}: method {plan.name!r}",
            plan=plan,
            constants=constants,
            mutables=mutables,
            inline=[data.data is not None for data in stored],
            segments=len(segments),
        ).run()
    for plan in file.plans if delegates else ():
        extents = list(delegate_extents(file, plan))
        for number, delegate in enumerate(plan.delegates or ()):
            if delegate.id == BACKEND:
                check_xnnpack(file, extents[number], plan, number)


def constant_rooms(file: PteFile) -> Sequence[int]:
    """By data_buffer_idx of a constant: bytes from its start to the end of what holds it."""
    program = file.program
    segment = program.constant_segment
    if segment is not None and len(segment.offsets or ()) > 1:
        return _rooms(file, segment)
    return [-1 if b.storage is None else _size(b.storage) for b in program.constant_buffer or ()]


def mutable_rooms(file: PteFile) -> Sequence[int]:
    """By data_buffer_idx of a tensor with memory of its own: bytes to the end of its segment.

    The runtime reads initial data from the first list only.
    """
    lists = file.program.mutable_data_segments
    return _rooms(file, lists[0]) if lists else ()


def _rooms(file: PteFile, segment: SubsegmentOffsets) -> list[int]:
    size = file.segments[segment.segment_index].size
    return [size - offset for offset in segment.offsets or ()]


def _size(data: object) -> int:
    return len(data) if isinstance(data, bytes) else int(getattr(data, "size", 0))


def _range(what: str, index: int, count: int) -> str:
    return f"{what} {index} does not exist, there are {count}"
