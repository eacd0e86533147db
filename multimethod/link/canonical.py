"""A program laid out as the linker lays out its own: equal methods with equal data are equal files,
whichever serializer wrote them.

Without manifest and checksum, which say more than what was compiled. Objects in the cache are so.
"""

from __future__ import annotations

import os

from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.merge_data import merge_data
from mmpack.multimethod.link.schema import Program
from mmpack.multimethod.link.write import Segment, write_pte


def laid_out(file: PteFile) -> tuple[Program, list[Segment]]:
    """A file's program, changed in place, and its segments, in their canonical layout."""
    data = merge_data([file], foreign=False)
    data.renumber([(0, plan.name or "", plan) for plan in file.plans])
    return data.fill(Program(file.program.version, file.plans)), data.segments


def write_canonical(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> bool:
    """Write a program in its canonical layout; False, and nothing, if it has fields that this
    mmpack does not know and would lose, which is for whoever links it to refuse.

    Raises FormatError for what is no program; OutputError if the output cannot be written.
    """
    with PteFile.open(path) as file:
        if file.unknown:
            return False
        program, segments = laid_out(file)
        write_pte(output, program, segments, sealed=False, lasting=False)
    return True
