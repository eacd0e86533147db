"""spec.yaml -> model.pte: the driver that walks the stages in their order.

check -> units -> compile (cached, in worker processes) -> link -> verify -> move into place
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import nn

from mmpack.multimethod.calibrate import record_examples
from mmpack.multimethod.collect import Collected
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.calls import Examples
from mmpack.multimethod.compile.fingerprint import fingerprints
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.objects import Compiler, Objects
from mmpack.multimethod.compile.precision import is_calibrated, least_sqnr
from mmpack.multimethod.compile.sources import hash_file
from mmpack.multimethod.compile.state import State, decide
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import OutputError, TargetError
from mmpack.multimethod.examine import Examined, assemble, plan_flow, rehearse_all
from mmpack.multimethod.flow.plan import expanded_flows
from mmpack.multimethod.heads import (
    Compared,
    compare_heads,
    heads_note,
    heads_record,
    require_heads,
    unconverted,
)
from mmpack.multimethod.link import LinkReport, Manifest, MethodRecord, link
from mmpack.multimethod.outputs import refuse_overwriting
from mmpack.multimethod.plain import PLAIN
from mmpack.multimethod.progress import Progress, Silent
from mmpack.multimethod.rotation import require_one_rotation
from mmpack.multimethod.scratch import scratch_folder
from mmpack.multimethod.shared_scales import one_tensor, require_one_scale, with_common_ranges
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.verify import Checked, Verified, verify_program
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
    """What a build did."""

    output: Path
    methods: tuple[MethodReport, ...]
    flows: tuple[Checked, ...]
    link: LinkReport

    @property
    def compiled(self) -> int:
        """How many methods were compiled; the rest came out of the cache."""
        return sum(not m.cached for m in self.methods)


def build(
    spec: str | Path,
    output: str | Path | None = None,
    *,
    jobs: int = 1,
    verify: bool = True,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the program that a spec describes.

    output: where it goes; none given: `<spec's stem>.pte` in the working directory.
    jobs: how many methods are compiled at once, each in its own process.
    verify: compare every method and flow with eager PyTorch, and write nothing if one is wrong.
    cache: the cache's folder; none given: see `cache.default_root`.

    Raises an MmpackError for everything that the user can mend. Whatever goes wrong, the output
    is what it was before, and objects already compiled stay in the cache.
    """
    progress = progress or Silent()
    spec_file = load_spec(spec)
    target = Path(output) if output is not None else Path(f"{spec_file.path.stem}.pte")
    _require_writable(target)
    refuse_overwriting(target, _sources(spec_file))
    _require_backends(spec_file)
    with Cache(Path(cache) if cache is not None else None) as store:
        made, prints = _examined(spec_file, store, verify)
        model, units = made.model, made.units
        # What a fingerprint overlooks makes a stale object, and verification finds it. Without
        # verification nothing is taken from the cache.
        fresh = frozenset() if verify else frozenset(units)
        parts = _compile(made, prints, store, jobs, progress, fresh)
        verified = _verify(parts, model, target, progress) if verify else None
        if verified is not None and (stale := _doubtful(parts, verified)):
            parts = _compile(made, prints, store, jobs, progress, stale)
            verified = _verify(parts, model, target, progress)
        if verified is not None:
            verified.require_right()
            heads = _compare_heads(parts, model, store, jobs, progress)
            parts = attrs.evolve(parts, heads=heads)
    progress.stage("link", 1)
    report = _link(parts, verified, target)
    progress.done("")
    return BuildReport(
        output=target,
        methods=tuple(_row(parts, name, report, verified) for name in units),
        flows=verified.flows if verified is not None else (),
        link=report,
    )


def _examined(spec_file: SpecFile, store: Cache, verify: bool) -> tuple[Examined, dict[str, str]]:
    """The model and its methods, with their fingerprints. Methods that the cache knows were tried
    when they got there, and are not tried again."""
    found = Collected()
    made = assemble(spec_file, found)
    prints = {} if found else fingerprints(made.units, state_names(made.model))
    if not verify or found or not all(store.facts(key) is not None for key in prints.values()):
        rehearse_all(made, found, verify=verify)
    found.check()
    return made, prints


def _verify(parts: _Parts, model: nn.Module, target: Path, progress: Progress) -> Verified:
    """Link the parts beside the target and run them. What is shipped is linked once more, since
    its manifest holds the errors that are measured here."""
    with _scratch_beside(target) as folder:
        path = folder / target.name
        progress.stage("link", 1)
        _link(parts, None, path)
        progress.done("")
        private = parts.state.private
        return verify_program(
            path, parts.spec_file, parts.units, model, private, progress, parts.examples
        )


def _compare_heads(
    parts: _Parts, model: nn.Module, store: Cache, jobs: int, progress: Progress
) -> dict[str, Compared]:
    """What was converted to single heads, held against itself unconverted."""
    twins = unconverted(parts.units, parts.objects)
    if not twins:
        return {}
    names = state_names(model)
    compiler = Compiler(twins, names, fingerprints(twins, names), store, progress)
    compiler.export_all()
    made = compiler.compile_all(parts.state, jobs, parts.signatures, parts.examples)
    return compare_heads(twins, parts.objects, made, progress)


def _doubtful(parts: _Parts, verified: Verified) -> frozenset[str]:
    """Methods out of the cache that are wrong, or that a wrong flow is made of."""
    wrong = {c.name for c in verified.methods.values() if not c.right}
    for flow in verified.flows:
        if not flow.right:
            steps = parts.spec_file.steps[flow.name.removeprefix("flow ")]
            wrong |= {step.run for step in steps if step.run}
    return frozenset(wrong - parts.objects.compiled)


def _require_backends(spec_file: SpecFile) -> None:
    """Every backend that a method wants must be able to build here, before anything is done."""
    spec = spec_file.spec
    for name in dict.fromkeys(method.target for method in spec_file.methods.values()):
        found = BACKENDS[spec.targets[name].backend].available()
        if not found.builds:
            mistake = spec_file.mistake(
                ("targets", name, "backend"),
                f"cannot build here: {found.detail}; to change that: {found.remedy}",
            )
            raise TargetError(str(mistake))


@frozen(eq=False)
class _Parts:
    """What a program is put together from."""

    spec_file: SpecFile
    units: Mapping[str, Unit]
    signatures: Mapping[str, Signature]
    objects: Objects
    state: State
    examples: Examples
    heads: Mapping[str, Compared] = field(factory=dict)
    """What was converted to single heads, beside itself unconverted."""


def _sources(spec_file: SpecFile) -> list[Path]:
    """The files that a spec names, and the spec itself."""
    model = spec_file.spec.model
    named = [model.factory, model.weights, spec_file.spec.sample, spec_file.spec.calibration]
    named += [method.wrapper for method in spec_file.methods.values()]
    named += [method.calibration for method in spec_file.methods.values()]
    paths = [spec_file.folder / n.partition(":")[0] for n in named if isinstance(n, str)]
    return [spec_file.path, *paths]


def _require_writable(target: Path) -> None:
    """What would fail at the very end is said at the beginning."""
    if target.is_dir():
        raise OutputError(f"{target}: is a folder, expected the name of a file")
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{target}: cannot be written: no permission to write in {folder}")


@contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder(target.parent, target.name))
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
        yield folder


def _compile(
    made: Examined,
    prints: Mapping[str, str],
    store: Cache,
    jobs: int,
    progress: Progress,
    fresh: frozenset[str],
) -> _Parts:
    spec_file, model, units = made.spec_file, made.model, made.units
    compiler = Compiler(units, state_names(model), prints, store, progress, fresh)
    facts = compiler.export_all()
    signatures = {name: f.signature for name, f in facts.items()}
    state = decide(spec_file, {name: f.touched for name, f in facts.items()})
    # Every edge, before anything is compiled.
    plans = {n: plan_flow(spec_file, n, signatures, state) for n in spec_file.spec.flow}
    require_one_rotation(spec_file, units, plans.values())
    quantized = any(least_sqnr(unit) is not None for unit in units.values())
    if quantized:
        progress.stage("calibrate", 1)
    users = {**state.private, **state.shared}
    tape = store.scratch("tape")
    examples = record_examples(spec_file, model, units, signatures, plans, tape, users)
    if quantized:
        progress.done("")
    calibrated = {name for name, unit in units.items() if is_calibrated(unit)}
    together = one_tensor(plans.values(), state, calibrated)
    examples = with_common_ranges(examples, together)
    objects = compiler.compile_all(state, jobs, signatures, examples)
    require_heads(spec_file, objects)
    require_one_scale(together, {name: o.figures for name, o in objects.by_name.items()})
    return _Parts(spec_file, units, signatures, objects, state, examples)


def _link(parts: _Parts, verified: Verified | None, output: Path) -> LinkReport:
    spec = parts.spec_file.spec
    manifest = Manifest(
        mmpack=installed("mmpack") or "0",
        methods={name: _record(parts, name, verified) for name in parts.units},
        flow=PLAIN.unstructure(expanded_flows(parts.spec_file)),
        provenance={
            "spec": parts.spec_file.path.name,
            "spec_sha256": hash_file(parts.spec_file.path),
            "model": spec.model.factory,
            "torch": torch.__version__,
            "executorch": installed("executorch"),
            "flows": _flows(verified),
        },
    )
    return link(
        [parts.objects.by_name[name].path for name in parts.units],
        output,
        manifest=manifest,
        constants=spec.constants,
        shared=tuple(parts.state.shared),
        private=tuple(parts.state.private),
    )


def _flows(verified: Verified | None) -> dict[str, Any]:
    """What the manifest says of each flow: how far it is from its reference and what is allowed,
    or that it was not compared, since it has none."""
    return {
        checked.name.removeprefix("flow "): {
            "error": checked.error,
            "tolerance": _finite(checked.tolerance),
            "sqnr": _finite(checked.sqnr),
            "least_sqnr": checked.least_sqnr,
        }
        if checked.compared
        else "not compared"
        for checked in (verified.flows if verified is not None else ())
    }


def _record(parts: _Parts, name: str, verified: Verified | None) -> MethodRecord:
    unit, made = parts.units[name], parts.objects.by_name[name]
    checked = verified.methods[name] if verified is not None else None
    return MethodRecord(
        signature=parts.signatures[name],
        target=unit.spec.target,
        backend=unit.backend,
        options=dict(unit.options),
        operators=made.figures["operators"],
        delegated=made.figures["delegated"],
        left=made.figures["left"],
        key=made.key,
        error=checked.error if checked is not None else None,
        tolerance=_finite(checked.tolerance) if checked is not None else None,
        verified=checked is not None,
        sqnr=_finite(checked.sqnr) if checked is not None else None,
        least_sqnr=checked.least_sqnr if checked is not None else None,
        scales=made.figures.get("scales", []),
        extra={
            "ranges": {n: list(r) for n, r in unit.ranges.items()},
            **heads_record(parts.objects, parts.heads, name),
        },
    )


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None


def _row(parts: _Parts, name: str, report: LinkReport, verified: Verified | None) -> MethodReport:
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
