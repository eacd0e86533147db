"""Large programs, made cheaply; and a child process that links one and tells what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from attrs import frozen

from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.schema import (
    Chain,
    EValue,
    ExecutionPlan,
    NamedData,
    Program,
    SubsegmentOffsets,
    Tensor,
)
from mmpack.multimethod.link.write import Piece, Segment, write_pte

PARTS = 16


def large_program(path: Path, size: int, *, method: str = "weights") -> Path:
    """A program of about `size` random bytes: half of them constants that `method` returns, half
    named data that nobody uses."""
    part = size // (2 * PARTS) // 128 * 128
    noise = path.with_suffix(".noise")
    with noise.open("wb") as out:
        for _ in range(2 * PARTS):
            out.write(os.urandom(part))
    tensors = [
        Tensor(scalar_type=0, sizes=(part,), dim_order=b"\0", data_buffer_idx=number + 1)
        for number in range(PARTS)
    ]
    plan = ExecutionPlan(
        name=method,
        values=[EValue(tensor) for tensor in tensors],
        inputs=(),
        outputs=tuple(range(PARTS)),
        chains=[Chain(inputs=(), outputs=(), instructions=[])],
        operators=[],
        delegates=[],
        non_const_buffer_sizes=(0,),
    )
    program = Program(
        execution_plan=[plan],
        constant_segment=SubsegmentOffsets(0, (0, *(part * number for number in range(PARTS)))),
        named_data=[NamedData(f"{method}_{number}", number + 1) for number in range(PARTS)],
    )
    fd = os.open(noise, os.O_RDONLY)
    source = PteFile(noise, 2 * PARTS * part, Program(), (), 0, (), fd)
    with source:
        pieces = [Piece((source, Extent(number * part, part))) for number in range(2 * PARTS)]
        constants = Segment(tuple((part * n, piece) for n, piece in enumerate(pieces[:PARTS])))
        write_pte(path, program, [constants, *map(Segment.of, pieces[PARTS:])], sealed=False)
    noise.unlink()
    return path


@frozen
class Took:
    """Of a link in a process of its own: peak RSS above what it was before, in bytes; seconds."""

    memory: int
    seconds: float


CHILD = """
import json, re, sys, time
from mmpack.multimethod.link import link
def peak():  # not ru_maxrss, which starts at what the parent had
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before, started = peak(), time.perf_counter()
link(sys.argv[3:], sys.argv[1], data=sys.argv[2] or None)
print(json.dumps([peak() - before, time.perf_counter() - started]))
"""


def link_in_child(output: Path, *inputs: Path, data: str = "") -> Took:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(output), data, *map(str, inputs)],
        check=True,
        capture_output=True,
        text=True,
    )
    return Took(*json.loads(child.stdout))
