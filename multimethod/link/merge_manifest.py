"""The manifest of a linked program, from what its inputs know about themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link.check_manifest import read_manifest
from mmpack.multimethod.link.constant_methods import constant_of
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.manifest import Constant, Manifest, MethodRecord
from mmpack.multimethod.link.names import file_labels
from mmpack.multimethod.link.schema import DelegateCall, ExecutionPlan, Instruction, KernelCall
from mmpack.multimethod.link.signatures import foreign_signature
from mmpack.multimethod.signature import Dim, Signature
from mmpack.multimethod.versions import installed


def merged_manifest(
    files: Sequence[PteFile],
    names: Sequence[Mapping[str, str]],
) -> Manifest:
    """Records of all methods, under their new names: from the input's own manifest, or, for a
    foreign one, what its plan says. The steps of a flow follow their methods' names. Provenance
    is by file, called by as much of its path as tells it apart.

    Raises LinkError that tells all flows of one name that two inputs have, and all dims by which
    they mean different sizes.
    """
    methods: dict[str, MethodRecord] = {}
    values: dict[str, Constant] = {}
    flows: dict[str, Any] = {}
    owner: dict[str, PteFile] = {}
    dims: dict[str, tuple[Dim, PteFile, str]] = {}
    provenance: dict[str, Any] = {}
    wrong: list[str] = []
    labels = file_labels([file.path for file in files])
    for file, label, renamed in zip(files, labels, names, strict=True):
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
            if not record.extra.get("foreign"):  # the dims of those are numbered, not named
                wrong += _other_dims(signature, file, dims)
        if own is not None:
            provenance[label] = {"mmpack": own.mmpack, **own.provenance}
            for name, flow in own.flow.items():
                if name in owner:
                    wrong.append(
                        f"two flows are called {name!r}, in {owner[name].path} and in "
                        f"{file.path}; rename one in its spec and build that again"
                    )
                owner[name], flows[name] = file, _follow(flow, renamed)
    if wrong:
        raise LinkError("\n".join(wrong))
    return Manifest(methods, (), flows, values, provenance, installed("mmpack") or "0")


def _other_dims(
    signature: Signature, file: PteFile, dims: dict[str, tuple[Dim, PteFile, str]]
) -> Iterator[str]:
    """A dim's name means one size everywhere in a program. `dims` are those met so far."""
    for name, dim in signature.dims.items():
        first, where, method = dims.setdefault(name, (dim, file, signature.method))
        if first != dim:
            yield (
                f"dim {name!r} is {first} in method {method!r} of {where.path} and {dim} in "
                f"method {signature.method!r} of {file.path}, and means one size everywhere in a "
                "program; rename one in its spec and build that again"
            )


def _follow(part: Any, names: Mapping[str, str]) -> Any:
    """A flow, or a part of one, as plain data, whose steps run methods by their new names."""
    if isinstance(part, list | tuple):
        return [_follow(step, names) for step in part]
    if not isinstance(part, dict):
        return part
    made = dict(part)
    for key in ("run", "last"):
        if isinstance(method := made.get(key), str):
            made[key] = names.get(method, method)
    if "steps" in made:
        made["steps"] = _follow(made["steps"], names)
    return made


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
