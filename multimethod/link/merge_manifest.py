"""The manifest of a linked program, from what its inputs know about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from .constants import constant_of
from .file import PteFile
from .manifest import Constant, Manifest, MethodRecord, read_manifest
from .schema import DelegateCall, ExecutionPlan, Instruction, KernelCall
from .signatures import foreign_signature


def merged_manifest(
    files: Sequence[PteFile],
    names: Sequence[Mapping[str, str]],
) -> Manifest:
    """Records of all methods, under their new names: from the input's own manifest, or, for a
    foreign one, what its plan says. Flows of one input are kept if nothing in it was renamed.
    """
    methods: dict[str, MethodRecord] = {}
    values: dict[str, Constant] = {}
    flow: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    version = ""
    for file, renamed in zip(files, names, strict=True):
        own = read_manifest(file)
        for plan in file.plans:
            old = plan.name or ""
            value = constant_of(plan)
            if own is not None and old in own.methods:
                record = own.methods[old]
            elif value is not None:
                values[renamed[old]] = value
                continue
            else:
                record = foreign_record(file, plan)
            signature = evolve(record.signature, method=renamed[old])
            methods[renamed[old]] = evolve(record, signature=signature)
        if own is not None:
            version = max(version, own.mmpack)
            provenance[file.path.name] = own.provenance
            if all(old == new for old, new in renamed.items()):
                flow.update(own.flow)
    return Manifest(methods, (), flow, values, provenance, version)


def foreign_record(file: PteFile, plan: ExecutionPlan) -> MethodRecord:
    """What can be told about a method of a program that has no manifest."""
    operators, delegated = count_operators(plan)
    backends = sorted({delegate.id or "" for delegate in plan.delegates or ()})
    return MethodRecord(
        foreign_signature(file, plan.name or ""),
        backend=", ".join(backends) or "portable",
        operators=operators,
        delegated=delegated,
        extra={"foreign": True},
    )


def count_operators(plan: ExecutionPlan) -> tuple[int, int]:
    """Calls in a plan, of kernels and delegates together, and of delegates alone."""

    def calls(kind: type | tuple[type, ...]) -> int:
        instructions: list[Instruction] = [
            i for chain in plan.chains or () for i in chain.instructions or ()
        ]
        return sum(isinstance(i.instr_args, kind) for i in instructions)

    return calls((KernelCall, DelegateCall)), calls(DelegateCall)
