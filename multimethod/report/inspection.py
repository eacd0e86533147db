"""What is in a `.pte`, read from the file alone: nothing is executed, torch is not imported.

print(inspect("model.pte"))
inspect("model.pte").as_dict()["methods"]["attention"]["left"]
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import field, frozen

from mmpack.multimethod.errors import counted
from mmpack.multimethod.link import (
    Manifest,
    PteFile,
    check_integrity,
    foreign_signature,
    open_program,
    read_manifest,
    sizes,
)
from mmpack.multimethod.link.data_file import DataFile
from mmpack.multimethod.link.files import FILE_PREFIX
from mmpack.multimethod.link.outside import attach, find_data, needs
from mmpack.multimethod.link.schema import ExecutionPlan, KernelCall
from mmpack.multimethod.scale import EndScales
from mmpack.multimethod.signature import Signature


@frozen
class MethodView:
    """One method. delegates: backend -> how many calls; left: operator -> how many calls on the
    CPU; arenas: bytes of planned memory, by memory id from 1; bytes: delegate data and constants
    that it reaches, shared ones included; precision, sqnr (dB), scales: of a quantized method, see
    `MethodRecord`; heads: attention blocks `found` and `converted` to single heads, by which
    `method`, how far that is `apart` from the unconverted method and its `unconverted_size`, {}
    where none was looked for; lane: the processor that the manifest says it occupies, or ""."""

    signature: Signature
    target: str | None
    delegates: dict[str, int]
    left: dict[str, int]
    operators: int | None
    delegated: int | None
    arenas: tuple[int, ...]
    bytes: int
    error: float | None
    verified: bool
    precision: str | None = None
    sqnr: float | None = None
    scales: tuple[EndScales, ...] = ()
    heads: dict[str, Any] = field(factory=dict)
    lane: str = ""


@frozen
class Inspection:
    """A whole program. `shared` is how many bytes more it would take without sharing; `files`
    are those that travel inside, `named` the other named data blobs, with their bytes; `checksum`
    is "right", or None for a file without one (mmpack did not make it); `data`, of a program that
    keeps weights outside, is the `file` that has them, its `size` (None if it is not there) and
    the `keys` that the program needs. Sizes in bytes."""

    path: str
    size: int
    methods: dict[str, MethodView]
    constants: dict[str, Any]
    constant_data: int
    files: dict[str, int]
    named: dict[str, int]
    shared: int
    state: tuple[dict[str, Any], ...]
    flow: dict[str, Any]
    provenance: dict[str, Any]
    checksum: str | None
    data: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with each signature also as text, for `--json`."""
        plain: dict[str, Any] = cattrs.unstructure(self)
        for name, method in self.methods.items():
            plain["methods"][name]["text"] = str(method.signature)
        return plain

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def inspect(path: str | Path) -> Inspection:
    """Look into any ExecuTorch program. Raises FormatError if it is none, or is damaged."""
    with open_program(path) as file:
        manifest = read_manifest(file)
        data = _attached(file, manifest)
        plans = {plan.name or "": plan for plan in file.program.execution_plan or ()}
        constants = manifest.constants if manifest is not None else {}
        measured = sizes(file)
        views = {
            name: _view(file, name, plan, manifest, measured.methods[name].total)
            for name, plan in plans.items()
            if name not in constants
        }
        constant = file.program.constant_segment
        return Inspection(
            path=str(path),
            size=file.size,
            methods=views,
            constants=dict(constants),
            constant_data=(
                file.segments[constant.segment_index].size
                if constant is not None and len(constant.offsets or ()) > 1
                else 0
            ),
            files=dict(manifest.files) if manifest is not None else {},
            named={
                key: file.segments[index].size
                for key, index in file.named.items()
                if not key.startswith(FILE_PREFIX)
            },
            shared=measured.shared,
            state=tuple(cattrs.unstructure(s) for s in manifest.state) if manifest else (),
            flow=dict(manifest.flow) if manifest is not None else {},
            provenance={"mmpack": manifest.mmpack, **manifest.provenance} if manifest else {},
            checksum="right" if check_integrity(file) else None,
            data=data,
        )


def _attached(file: PteFile, manifest: Manifest | None) -> dict[str, Any] | None:
    """What a program has outside. What is known without that file is shown also where it is not."""
    if manifest is None or manifest.data is None:
        return None
    file.needs = needs(manifest)
    told: dict[str, Any] = {"file": manifest.data.file, "size": None, "keys": dict(file.needs)}
    place = find_data(file.path, manifest)
    if place is not None:
        attach(file, manifest, DataFile.open(place))
        told["size"] = file.data.size if file.data is not None else None
    return told


def _view(
    file: PteFile, name: str, plan: ExecutionPlan, manifest: Manifest | None, size: int
) -> MethodView:
    record = manifest.methods.get(name) if manifest is not None else None
    kernels: Counter[str] = Counter()
    delegates: Counter[str] = Counter()
    for chain in plan.chains or ():
        for instruction in chain.instructions or ():
            call = instruction.instr_args
            if isinstance(call, KernelCall):
                operator = (plan.operators or [])[call.op_index]
                kernels[".".join(part for part in (operator.name, operator.overload) if part)] += 1
    for delegate in plan.delegates or ():
        delegates[delegate.id or ""] += 1
    heads = record.extra.get("heads") if record else None
    precision = record.options.get("precision") if record else None
    return MethodView(
        signature=record.signature if record else foreign_signature(file, name),
        target=record.target if record else None,
        delegates=dict(delegates),
        left=dict(kernels),
        operators=record.operators if record else None,
        delegated=record.delegated if record else None,
        arenas=tuple((plan.non_const_buffer_sizes or ())[1:]),
        bytes=size,
        error=record.error if record else None,
        verified=record.verified if record else False,
        precision=precision if isinstance(precision, str) else None,
        sqnr=record.sqnr if record else None,
        scales=record.scales if record else (),
        heads=heads if isinstance(heads, dict) else {},
        lane=record.lane if record else "",
    )


def _lines(seen: Inspection) -> list[str]:
    from mmpack.multimethod.report.tables import size

    made = f", made by mmpack {seen.provenance['mmpack']}" if seen.provenance else ""
    several_lanes = len({method.lane for method in seen.methods.values()}) > 1
    lines = [f"{seen.path}: {size(seen.size)}, {counted(len(seen.methods), 'method')}{made}", ""]
    for method in seen.methods.values():
        lines.append(str(method.signature))
        target = [f"target {method.target}"] if method.target else []
        target += [f"lane {method.lane}"] if several_lanes and method.lane else []
        target += [method.precision] if method.precision else []
        delegates = [f"{count} × {name}" for name, count in method.delegates.items()]
        lines.append("  " + ", ".join(target + (delegates or ["no delegate"])))
        if method.left:
            calls = ", ".join(
                f"{name} × {count}" if count > 1 else name
                for name, count in sorted(method.left.items())
            )
            lines.append(f"  on the CPU: {calls}")
        lines += _heads(method)
        arenas = " + ".join(size(arena) for arena in method.arenas if arena) or "none"
        checked = f", max error {method.error:.1e}" if method.error is not None else ""
        checked += ", not verified" if method.target and not method.verified else ""
        checked += f", SQNR {method.sqnr:.1f} dB" if method.sqnr is not None else ""
        for kind, name, scales in method.scales:
            told = "; ".join(
                f"{s.dtype} {s.low}..{s.high}, scale {s.scale:.6g}, zero point {s.zero_point}"
                for s in scales
            )
            lines.append(f"  {kind} {name}: {told}")
        lines.append(f"  data {size(method.bytes)}, arenas {arenas}{checked}")
    if seen.constants:
        lines += ["", "constants"]
        lines += [f"  {name} = {value!r}" for name, value in seen.constants.items()]
    for record in seen.state:
        kind = "shared by" if record["shared"] else "private to"
        shape = ", ".join(map(str, record["shape"]))
        lines += [
            "",
            f"state {record['name']}: {record['dtype']}[{shape}], "
            f"{kind} {', '.join(record['methods'])}",
        ]
    if seen.flow:
        lines += [""]
        lines += [f"flow {name}" + _agreement(seen, name) for name in seen.flow]
    if seen.files:
        lines += ["", "files"]
        lines += [f"  {name}: {size(count)}" for name, count in seen.files.items()]
    blobs = sum(seen.named.values())
    lines += [
        "",
        f"constant data {size(seen.constant_data)}, named data {size(blobs)} in "
        f"{counted(len(seen.named), 'blob')}, {size(seen.shared)} saved by sharing",
    ]
    if seen.data is not None:
        there = "which is not there" if seen.data["size"] is None else size(seen.data["size"])
        lines.append(f"data in {seen.data['file']}, {there}")
        lines += [f"  {key}: {size(count)}" for key, count in seen.data["keys"].items()]
    lines += _provenance(seen.provenance)
    lines.append(
        "the checksum is right" if seen.checksum else "no checksum: mmpack did not make this file"
    )
    return lines


def _provenance(told: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing that is told of where a program is from; of a linked one, of where
    each of its files is."""
    for key, value in told.items():
        if key in ("mmpack", "flows"):
            continue  # shown elsewhere
        if isinstance(value, dict):
            yield f"  {key}"
            yield from (f"    {k}: {v}" for k, v in value.items() if k != "flows")
        else:
            yield f"  {key}: {value}"


def _agreement(seen: Inspection, flow: str) -> str:
    """How far a flow was from the model when it was built, if that is told: by the program, or by
    the file that brought the flow when it was linked."""
    from mmpack.multimethod.report.tables import agreement

    told = [seen.provenance, *seen.provenance.values()]
    flows = [t["flows"] for t in told if isinstance(t, dict) and isinstance(t.get("flows"), dict)]
    found = next((f[flow] for f in flows if flow in f), None)
    if isinstance(found, dict):
        found = agreement(_number(found.get("error")), _number(found.get("sqnr")))
    return f": {found}" if found and isinstance(found, str) else ""


def _heads(method: MethodView) -> list[str]:
    """The line on a method's attention in single heads, if that is told."""
    found, converted = (_number(method.heads.get(key)) for key in ("found", "converted"))
    if found is None or converted is None:
        return []
    apart = _number(method.heads.get("apart"))
    by = " (rewritten)" if method.heads.get("method") == "rewrite" else ""
    off = f", off by {apart:.1e} from the unconverted method" if apart is not None else ""
    return [f"  {converted:.0f} of {found:.0f} attention blocks in single heads{by}{off}"]


def _number(value: object) -> float | None:
    """A number of what a manifest holds in free form, where others may have put anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
