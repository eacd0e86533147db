"""A unit on its way to a worker: one file, from which the same object can be made elsewhere.

It is what `torch.export.save` writes of the exported program, without its weights, and with one
more file in it, `unit.json`: the method's signature, its target and options, whose memory its ends
are in, how it is to be quantized, the code that registers operators of the user's own, and where
its weights are, by the hashes of their contents.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import nn
from torch.export import ExportedProgram

from mmpack.multimethod.compile.carried import Code
from mmpack.multimethod.compile.contents import Held, Reader, Slice, is_plain
from mmpack.multimethod.compile.quantize import Plan
from mmpack.multimethod.errors import CompileError, OutputError
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.signature import Signature

ABOUT = "unit.json"
"""Name of the description among the extra files of a program that torch.export saved."""


@frozen
class UnitFile:
    """What stands in a unit's file beside its exported program.

    options: of the target. io: as in a spec. plan: for a program that is to be quantized first.
    weights: what is put in the places of parameters, buffers and constants, by name.
    """

    method: str
    backend: str
    options: dict[str, Any]
    io: str
    signature: Signature
    plan: Plan | None = None
    code: Code = field(factory=Code)
    weights: dict[str, Held] = field(factory=dict)

    def contents(self) -> Iterator[Slice]:
        """All that it refers to in other files; the same may come several times."""
        for held in self.weights.values():
            yield held.content
        if self.plan is not None:
            yield from self.plan.contents()


def tensors_of(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The tensors that a unit's file leaves out, by name."""
    tables = (program.state_dict, program.constants)
    both = program.state_dict.keys() & program.constants.keys()
    found = {name: thing for table in tables for name, thing in table.items()}
    return {name: thing for name, thing in found.items() if is_plain(thing) and name not in both}


def write_unit(path: Path, about: UnitFile, program: ExportedProgram) -> None:
    """Write a unit to a file. Raises OutputError if it cannot be written, CompileError if
    torch.export cannot save the program."""
    text = json.dumps(PLAIN.unstructure(about))
    tables = (program.state_dict, program.constants)
    kept = [dict(table) for table in tables]
    data = io.BytesIO()
    try:
        for table in tables:
            table.update({n: _empty(table[n]) for n in table.keys() & about.weights.keys()})
        torch.export.save(program, data, extra_files={ABOUT: text})
    except Exception as error:
        raise CompileError(
            f"{about.method}: torch.export cannot save it: {type(error).__name__}: {error}"
        ) from error
    finally:
        for table, before in zip(tables, kept, strict=True):
            table.update(before)
    try:
        path.write_bytes(data.getbuffer())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def read_about(path: Path, contents: Path | None = None) -> UnitFile:
    """What stands in a unit's file, without the program. contents: folder with what the unit refers
    to, by hash, if it came from another machine."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(f"/extra/{ABOUT}"))
        about: UnitFile = PLAIN.structure(json.loads(archive.read(name)), UnitFile)
    if contents is not None and about.plan is not None and about.plan.tape is not None:
        about = attrs.evolve(about, plan=attrs.evolve(about.plan, tape=contents))
    return about


def read_program(path: Path, about: UnitFile, contents: Path | None = None) -> ExportedProgram:
    """The program, with its weights mapped. `contents` as for `read_about`. The code that it needs
    must have been imported.

    Raises CompileError if a weight cannot be read or is not what it was."""
    program: ExportedProgram = torch.export.load(path)
    reader = Reader(about.method, contents)
    for table in (program.state_dict, program.constants):
        for name in table.keys() & about.weights.keys():
            table[name] = _filled(reader, name, about.weights[name], table[name])
    return program


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """What stands for a tensor in a file, of its kind."""
    nothing = tensor.new_empty(0)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(nothing, requires_grad=tensor.requires_grad)
    return nothing


def _filled(reader: Reader, name: str, held: Held, empty: torch.Tensor) -> torch.Tensor:
    if not isinstance(empty, nn.Parameter):
        return reader.tensor(name, held, own=True)
    weight = reader.tensor(name, held, own=False)
    return nn.Parameter(weight, requires_grad=empty.requires_grad)
