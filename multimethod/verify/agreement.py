"""Whether a program is what a spec describes, before any number is compared."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import attrs

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import VerifyError, nearest
from mmpack.multimethod.flow.plan import expanded_flows
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.records import FlowSpec


def require_same(program: Program, spec_file: SpecFile, units: Mapping[str, Unit]) -> None:
    """Raise VerifyError unless methods, signatures, targets, state, flows and constants are those
    that the spec says."""
    missing = [name for name in units if name not in program]
    if missing:
        others = [n for n in program if n not in units and n not in program.constants]
        hint = nearest(missing[0] if len(missing) == 1 else "", others)
        raise VerifyError(f"{program.path} has no method {', '.join(map(repr, missing))}{hint}")
    extra = [name for name in program if name not in units and name not in program.constants]
    if extra:
        raise VerifyError(
            f"{program.path} has a method {', '.join(map(repr, extra))} that the spec has not"
        )
    for unit in units.values():
        _require_signature(program, unit)
        _require_target(program, unit)
    _require_state(program, spec_file)
    _require_extras(program, spec_file)


def _require_signature(program: Program, unit: Unit) -> None:
    has = program.signature(unit.name)
    named = tuple(value.name for value in has.outputs)
    if has.inputs != unit.inputs or has.dims != unit.dims:
        wanted = attrs.evolve(has, inputs=unit.inputs, dims=unit.dims)
        raise VerifyError(f"{unit.name}: the program takes\n  {has}\nthe spec says\n  {wanted}")
    if unit.spec.outputs and unit.spec.outputs != named:
        raise VerifyError(
            f"{unit.name}: the program's outputs are {', '.join(named)}, the spec says "
            f"{', '.join(unit.spec.outputs)}"
        )


def _require_extras(program: Program, spec_file: SpecFile) -> None:
    """Flows and constants are what the spec says."""
    manifest = program.manifest
    flows = manifest.flow if manifest is not None else {}
    for name, flow in expanded_flows(spec_file).items():
        if name not in flows:
            raise VerifyError(f"{program.path} has no flow {name!r}")
        if PLAIN.structure(flows[name], FlowSpec) != flow:
            raise VerifyError(f"flow {name!r} of {program.path} is not as the spec says")
    for name, value in spec_file.spec.constants.items():
        if name not in program.constants:
            raise VerifyError(f"{program.path} has no constant {name!r}")
        if program.constants[name] != value:
            raise VerifyError(
                f"constant {name!r} of {program.path} is {program.constants[name]!r}, the spec "
                f"says {value!r}"
            )


def _require_target(program: Program, unit: Unit) -> None:
    record = program.manifest.methods.get(unit.name) if program.manifest is not None else None
    if record is None:
        return
    has = {"backend": record.backend, **record.options}
    wanted = {"backend": unit.backend, **unit.options}
    if has != wanted:
        raise VerifyError(f"{unit.name}: the program was built for {has}, the spec says {wanted}")


def _require_state(program: Program, spec_file: SpecFile) -> None:
    """What several methods can reach is shared or private as the spec says."""
    wanted = spec_file.spec.state
    for record in program.manifest.state if program.manifest is not None else ():
        for said, patterns in ((True, wanted.shared), (False, wanted.private)):
            if any(fnmatchcase(record.name, p) for p in patterns) and record.shared != said:
                has, wants = ("shared", "private") if record.shared else ("private", "shared")
                raise VerifyError(
                    f"buffer {record.name!r} is {has} in {program.path}, the spec says {wants}"
                )
