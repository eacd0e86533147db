"""Methods whose attention was converted to single heads, held against themselves unconverted.

ExecuTorch's conversion (`mha2sha: true` of a QNN target) computes something else for some ways of
writing attention; mmpack's own (`{method: rewrite}`) is held to the same. To hold the converted
method against eager PyTorch does not find all of that, since what a coarse precision may be off by
hides it; the same method compiled without the conversion is off by the same, and so stands close
to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from attrs import frozen

from mmpack.multimethod.compile.calls import NO_EXAMPLES, Examples
from mmpack.multimethod.compile.objects import Objects
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.errors import TargetError, VerifyError
from mmpack.multimethod.flow.program import load
from mmpack.multimethod.progress import Progress
from mmpack.multimethod.samples import middle_sizes, random_inputs
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.targets.qnn_heads import ADVICE
from mmpack.multimethod.verify.compare import difference
from mmpack.multimethod.verify.noise import judging_calls, resized

OPTION = "mha2sha"
APART = 0.05
"""How far a right conversion may be from the unconverted method, relative as in
`compare.difference`. Measured in the SM8750 simulator for one block: none at fp16, 0.006 at 16a8w
and 16a4w; wrong ones are off by 0.5 and more."""
TRIED = 2


def require_heads(spec_file: SpecFile, objects: Objects) -> None:
    """Raise TargetError, with the spec's line, for a target with the option none of whose methods
    holds attention that it could be meant for."""
    for name, target in spec_file.spec.targets.items():
        methods = [m for m, spec in spec_file.methods.items() if spec.target == name]
        if not methods or not target.options.get(OPTION):
            continue
        if not any(_heads(objects, method).get("found") for method in methods):
            mistake = spec_file.mistake(
                ("targets", name, OPTION),
                f"none of the methods on this target ({', '.join(methods)}) holds attention of "
                "several heads with its projections, as the wrapper `attention_block` does; there "
                "is nothing to convert",
            )
            raise TargetError(str(mistake))


def unconverted(units: Mapping[str, Unit], objects: Objects) -> dict[str, Unit]:
    """The units whose objects hold converted attention, without the option."""
    return {
        name: attrs.evolve(unit, options={k: v for k, v in unit.options.items() if k != OPTION})
        for name, unit in units.items()
        if _heads(objects, name).get("converted")
    }


@frozen
class Compared:
    """A converted method beside itself unconverted: how far it is from it, as in
    `compare.difference`, and the bytes of the unconverted object. (Converted ones are larger.)"""

    apart: float
    unconverted_size: int


def compare_heads(
    units: Mapping[str, Unit],
    converted: Objects,
    plain: Objects,
    progress: Progress,
    examples: Examples = NO_EXAMPLES,
) -> dict[str, Compared]:
    """Run each of `units` converted and unconverted, on inputs that calibration recorded if there
    are any: others may be far from all that a quantized method can hold. Raises VerifyError that
    names all that are too far apart."""
    progress.stage("compare heads", len(units))
    compared: dict[str, Compared] = {}
    wrong = []
    for name, unit in units.items():
        progress.start(name)
        # Objects in the cache are replaced or deleted, never written to.
        paths = [objects.by_name[name].path for objects in (converted, plain)]
        programs = [load(path, mmap=True, engine="stock") for path in paths]
        apart = 0.0
        for inputs in _inputs(unit, examples):
            got, expected = (program.run_method(name, *inputs) for program in programs)
            far = [difference(e, g) for e, g in zip(expected, got, strict=True)]
            apart = max(apart, *far)
        for program in programs:
            program.reset()  # frees what is loaded, here and now
        compared[name] = Compared(apart, plain.by_name[name].path.stat().st_size)
        if apart > APART:
            who, way_out = "ExecuTorch", ADVICE
            if _heads(converted, name).get("method") == "rewrite":
                who, way_out = "mmpack", f"build it without `{OPTION}`"
            wrong.append(
                f"{name}: its attention converted to single heads is off by {apart:.3g} from "
                f"itself unconverted, allowed {APART:.3g}: {who} converted it wrongly; {way_out}"
            )
        progress.done(name)
    if wrong:
        raise VerifyError("\n".join(wrong))
    return compared


def _inputs(unit: Unit, examples: Examples) -> Iterator[list[torch.Tensor]]:
    sizes = middle_sizes(unit.dims)
    if calls := judging_calls(unit, examples):
        yield from resized(examples, calls[:TRIED], unit.inputs, sizes)
        return
    generator = torch.Generator().manual_seed(7)
    for _ in range(TRIED):
        yield random_inputs(unit.inputs, sizes, unit.ranges, generator)


def heads_note(objects: Objects, compared: Mapping[str, Compared], method: str) -> str | None:
    """What a build says of a method's conversion; None where there was nothing to convert."""
    heads = _heads(objects, method)
    if not heads.get("found"):
        return None
    told = f"{method}: {heads['converted']} of {heads['found']} attention blocks in single heads"
    told += " (rewritten)" if heads.get("method") == "rewrite" else ""
    if method in compared:
        before = compared[method].unconverted_size / 1000
        now = objects.by_name[method].path.stat().st_size / 1000
        told += f", off by {compared[method].apart:.1e} from the unconverted method, "
        told += f"{now:.0f} kB against {before:.0f} kB"
    return told


def heads_record(
    objects: Objects, compared: Mapping[str, Compared], method: str
) -> dict[str, object]:
    """What the manifest holds of a method's conversion."""
    heads = _heads(objects, method)
    if not heads.get("found"):
        return {}
    more = attrs.asdict(compared[method]) if method in compared else {}
    return {"heads": {**heads, **more}}


def _heads(objects: Objects, method: str) -> dict[str, Any]:
    heads: dict[str, Any] = objects.by_name[method].figures.get("extra", {}).get("heads", {})
    return heads
