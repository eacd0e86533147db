"""What is told of a program that was built: in its manifest, and to the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from mmpack.multimethod.compile.quantize import from_plain
from mmpack.multimethod.compile.sources import hash_file
from mmpack.multimethod.driver.parts import Parts
from mmpack.multimethod.driver.place import data_name
from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.flow.plan import expanded_flows
from mmpack.multimethod.link import LinkReport, Manifest, MethodRecord, link
from mmpack.multimethod.link.relabel import relabel
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.scratch import put_in_place
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.verify.checked import Checked, Verified
from mmpack.multimethod.verify.heads import heads_note, heads_record
from mmpack.multimethod.versions import installed


@frozen
class MethodReport:
    """A row of the table that ends a build. `error` is None if the build did not verify, `sqnr` (in
    dB) also where nothing is quantized."""

    signature: Signature
    target: str
    operators: int
    delegated: int
    size: int
    cached: bool
    error: float | None
    precision: str | None = None
    quantized: bool = False
    sqnr: float | None = None
    note: str | None = None


@frozen
class BuildReport:
    """What a build did.

    seconds: how long each stage took. memory: bytes that this process has had resident at most
    since it began, and those of the largest worker that compiled its methods; 0 without any.
    together: bytes that this process and its workers took at most while these compiled, without
    files that they map.
    rebound: how many of the compiled methods are others of their structure with their own weights.
    """

    output: Path
    methods: tuple[MethodReport, ...]
    flows: tuple[Checked, ...]
    link: LinkReport
    seconds: Mapping[str, float]
    memory: tuple[int, int]
    together: int = 0
    rebound: int = 0

    @property
    def compiled(self) -> int:
        """How many methods were compiled; the rest came out of the cache."""
        return sum(not m.cached for m in self.methods)


def link_parts(parts: Parts, verified: Verified | None, output: Path) -> LinkReport:
    """Link the parts into a program at `output`, with what was found when they were verified."""
    spec = parts.spec_file.spec
    return link(
        [parts.objects.by_name[name].path for name in parts.units],
        output,
        manifest=_manifest(parts, verified),
        constants=spec.constants,
        shared=tuple(parts.state.shared),
        private=tuple(parts.state.private),
        files=_files(parts.spec_file),
        data=data_name(parts.spec_file, output),
        anew=spec.data == "separate",
    )


def relabel_parts(parts: Parts, verified: Verified, linked: LinkReport, output: Path) -> LinkReport:
    """Move what `link_parts` made of the parts, before they were verified, to `output`, with what
    was found then."""
    old, new = linked.manifest, _manifest(parts, verified)
    methods = {n: attrs.evolve(r, size=old.methods[n].size) for n, r in new.methods.items()}
    manifest = attrs.evolve(
        new, methods=methods, state=old.state, constants=old.constants, files=old.files
    )
    size = relabel(linked.path, manifest)
    put_in_place(linked.path, output)
    return attrs.evolve(linked, path=output, size=size, manifest=manifest)


def _manifest(parts: Parts, verified: Verified | None) -> Manifest:
    """What is told of the parts; the linker fills in what it does to them."""
    spec = parts.spec_file.spec
    return Manifest(
        mmpack=installed("mmpack") or "0",
        methods={name: _record(parts, name, verified) for name in parts.units},
        flow=PLAIN.unstructure(expanded_flows(parts.spec_file)),
        provenance={
            "spec": parts.spec_file.path.name,
            "spec_sha256": hash_file(parts.spec_file.path),
            "model": spec.model.source,
            "torch": torch.__version__,
            "executorch": installed("executorch"),
            "flows": _flows(verified),
        },
    )


def _files(spec_file: SpecFile) -> dict[str, bytes]:
    """What is to travel in the program. Raises SpecError for what cannot be read."""
    found, mistakes = {}, []
    for name, path in spec_file.spec.files.items():
        try:
            found[name] = (spec_file.folder / path).read_bytes()
        except OSError as error:
            message = f"{path!r} cannot be read: {error.strerror}"
            mistakes.append(spec_file.mistake(("files", name), message))
    if mistakes:
        raise SpecError(mistakes)
    return found


def _flows(verified: Verified | None) -> dict[str, Any]:
    """What the manifest says of each flow: how far it is from its reference and what is allowed,
    or that it was not compared, since it has none."""
    return {
        checked.name.removeprefix("flow "): {
            "error": _finite(checked.error),
            "tolerance": _finite(checked.tolerance),
            "sqnr": _finite(checked.sqnr),
            "least_sqnr": checked.least_sqnr,
        }
        if checked.compared
        else "not compared"
        for checked in (verified.flows if verified is not None else ())
    }


def _record(parts: Parts, name: str, verified: Verified | None) -> MethodRecord:
    unit, made = parts.units[name], parts.objects.by_name[name]
    checked = verified.methods[name] if verified is not None else None
    lane = parts.spec_file.spec.targets[unit.spec.target].lane
    return MethodRecord(
        signature=parts.signatures[name],
        target=unit.spec.target,
        backend=unit.backend,
        options=dict(unit.options),
        operators=made.figures["operators"],
        delegated=made.figures["delegated"],
        left=made.figures["left"],
        key=made.key,
        error=_finite(checked.error) if checked is not None else None,
        tolerance=_finite(checked.tolerance) if checked is not None else None,
        verified=checked is not None,
        sqnr=_finite(checked.sqnr) if checked is not None else None,
        least_sqnr=checked.least_sqnr if checked is not None else None,
        scales=from_plain(made.figures.get("scales", ())),
        extra={
            "ranges": {n: list(r) for n, r in unit.ranges.items()},
            **heads_record(parts.objects, parts.heads, name),
        },
        lane=lane or BACKENDS[unit.backend].lane,
    )


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None


def row(parts: Parts, name: str, report: LinkReport, verified: Verified | None) -> MethodReport:
    """What a build reports of one method."""
    figures = parts.objects.by_name[name].figures
    checked = verified.methods[name] if verified is not None else None
    backend = BACKENDS[parts.units[name].backend]
    options = backend.options(parts.units[name].options)
    return MethodReport(
        signature=parts.signatures[name],
        target=parts.units[name].spec.target,
        operators=figures["operators"],
        delegated=figures["delegated"],
        size=report.methods[name],
        cached=name not in parts.objects.compiled,
        error=checked.error if checked is not None else None,
        precision=getattr(options, "precision", None),
        quantized=backend.sqnr(options) is not None,
        sqnr=checked.sqnr if checked is not None else None,
        note=heads_note(parts.objects, parts.heads, name),
    )
