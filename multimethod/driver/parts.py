"""Methods -> the parts of a program: exported, calibrated, compiled, and what is settled between
these stages because it takes all methods together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import field, frozen
from torch import nn

from mmpack.multimethod.calibrate import record_examples
from mmpack.multimethod.collect import Collected
from mmpack.multimethod.compile.alike import Alike
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.calls import Examples
from mmpack.multimethod.compile.fingerprint import Print, fingerprints
from mmpack.multimethod.compile.means import Means
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.objects import Compiler, Objects
from mmpack.multimethod.compile.precision import is_calibrated, least_sqnr
from mmpack.multimethod.compile.state import State
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.driver.examine import Examined, settle
from mmpack.multimethod.driver.shared_scales import (
    one_tensor,
    require_one_scale,
    with_common_ranges,
)
from mmpack.multimethod.link.canonical import write_canonical
from mmpack.multimethod.progress import Progress
from mmpack.multimethod.signature import Signature
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.verify.heads import (
    Compared,
    compare_heads,
    require_heads,
    unconverted,
)


@frozen(eq=False)
class Parts:
    """What a program is put together from."""

    spec_file: SpecFile
    units: Mapping[str, Unit]
    signatures: Mapping[str, Signature]
    objects: Objects
    state: State
    examples: Examples
    heads: Mapping[str, Compared] = field(factory=dict)
    """What was converted to single heads, beside itself unconverted."""


def compile_parts(
    made: Examined,
    prints: Mapping[str, Print],
    store: Cache,
    means: Means,
    progress: Progress,
    fresh: frozenset[str],
    alike: Alike | None,
    why: Sequence[str] = (),
) -> Parts:
    """All that `link_parts` wants.

    prints: the methods' fingerprints. fresh: methods that are made anew, whatever the cache has.
    alike: which methods are of one structure; without it every method is lowered for itself.
    why: as in `build`.
    """
    spec_file, model, units = made.spec_file, made.model, made.units
    names = state_names(model)
    compiler = Compiler(units, names, prints, store, progress, fresh, why, alike, tidy)
    facts = compiler.export_all()
    signatures = {name: f.signature for name, f in facts.items()}
    found = Collected()
    settled = settle(made, signatures, {name: f.touched for name, f in facts.items()}, found)
    found.check()
    state, plans = settled.state, settled.plans
    assert state is not None
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
    objects = compiler.compile_all(state, means, signatures, examples)
    require_heads(spec_file, objects)
    require_one_scale(together, {name: o.figures for name, o in objects.by_name.items()})
    return Parts(spec_file, units, signatures, objects, state, examples)


def tidy(path: Path) -> None:
    """Write an object as the linker would lay it out, so that equal ones are equal files."""
    write_canonical(path, path)


def compare_converted(
    parts: Parts,
    model: nn.Module,
    store: Cache,
    means: Means,
    progress: Progress,
) -> dict[str, Compared]:
    """What was converted to single heads, held against itself unconverted."""
    twins = unconverted(parts.units, parts.objects)
    if not twins:
        return {}
    names = state_names(model)
    prints = fingerprints(twins, names)
    compiler = Compiler(twins, names, prints, store, progress, tidy=tidy)
    compiler.export_all()
    made = compiler.compile_all(parts.state, means, parts.signatures, parts.examples)
    return compare_heads(twins, parts.objects, made, progress, parts.examples)
