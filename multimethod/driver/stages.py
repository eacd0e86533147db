"""The stages of a build in their order: what `build` does once it has begun.

units -> compile (cached, in worker processes) -> link -> verify -> move into place
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
from torch import nn

from mmpack.multimethod.collect import Collected
from mmpack.multimethod.compile.alike import Alike
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.exports import known_facts
from mmpack.multimethod.compile.fingerprint import Fingerprints, Print
from mmpack.multimethod.compile.means import Means
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.rehearse import Rehearsed
from mmpack.multimethod.driver.examine import Examined, assemble, rehearse_all
from mmpack.multimethod.driver.parts import Parts, compare_converted, compile_parts
from mmpack.multimethod.driver.records import BuildReport, link_parts, relabel_parts, row
from mmpack.multimethod.driver.room import require_room_for_objects
from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.flow.program import load
from mmpack.multimethod.link import LinkReport
from mmpack.multimethod.link.rebind import learn
from mmpack.multimethod.memory import peak_memory
from mmpack.multimethod.progress import Progress, Stopwatch
from mmpack.multimethod.scratch import scratch_folder
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.verify.checked import Verified
from mmpack.multimethod.verify.program import verify_program


def run_stages(
    spec_file: SpecFile,
    target: Path,
    store: Cache,
    means: Means,
    *,
    verify: bool,
    share: bool,
    why: Sequence[str],
    progress: Stopwatch,
) -> BuildReport:
    """Build what a spec describes; all arguments are those of `build`, ready to be used."""
    with ExitStack() as opened:
        made, prints, alike = _examined(spec_file, store, verify, share)
        model, units = made.model, made.units
        # What a fingerprint overlooks makes a stale object, and verification finds it. Without
        # verification nothing is taken from the cache.
        fresh = frozenset() if verify else frozenset(units)
        parts = compile_parts(made, prints, store, means, progress, fresh, alike, why)
        tried = _verify(parts, model, target, opened, progress) if verify else None
        if tried is not None and (stale := _doubtful(parts, tried[0])):
            parts = compile_parts(made, prints, store, means, progress, stale, None)
            tried = _verify(parts, model, target, opened, progress)
        if tried is not None:
            tried[0].require_right()
        # In any case: a conversion that went wrong is none of the user's doing.
        heads = compare_converted(parts, model, store, means, progress)
        parts = attrs.evolve(parts, heads=heads)
        progress.stage("link", 1)
        if tried is not None and spec_file.spec.data == "inside":
            report = relabel_parts(parts, *tried, target)
        else:  # two files go into place as one, which the linker sees to
            report = link_parts(parts, tried[0] if tried is not None else None, target)
        progress.done("")
    verified = tried[0] if tried is not None else None
    return BuildReport(
        output=target,
        methods=tuple(row(parts, name, report, verified) for name in units),
        flows=verified.flows if verified is not None else (),
        link=report,
        seconds=progress.stop(),
        memory=(peak_memory(), parts.objects.memory),
        together=parts.objects.together,
        rebound=len(parts.objects.rebound),
    )


def _examined(
    spec_file: SpecFile, store: Cache, verify: bool, share: bool
) -> tuple[Examined, dict[str, Print], Alike | None]:
    """The model and its methods, with their fingerprints, and which are alike, if that is to be of
    use. Methods that the cache knows were tried when they got there, and are not tried again."""
    found = Collected()
    made = assemble(spec_file, found)
    printer = Fingerprints(state_names(made.model))
    prints = {} if found else {name: printer.print(unit) for name, unit in made.units.items()}
    alike = Alike(made.units, printer, learn) if share and not found else None
    known = known_facts(store, prints) if verify else {}
    if found or len(known) < len(prints):
        tried = {name: Rehearsed(facts.signature, facts.touched) for name, facts in known.items()}
        rehearse_all(made, found, verify=verify, known=tried, alike=alike)
    found.check()
    return made, prints, alike


def _verify(
    parts: Parts, model: nn.Module, target: Path, opened: ExitStack, progress: Progress
) -> tuple[Verified, LinkReport]:
    """Link the parts, to a file beside the target that is there until `opened` is closed, and run
    them. What is shipped has another manifest, since that holds the errors that are measured."""
    require_room_for_objects(parts)
    # In a folder of its own, since the other one is locked by its owner.
    path = opened.enter_context(_scratch_beside(target)) / "linked" / target.name
    path.parent.mkdir()
    progress.stage("link", 1)
    linked = link_parts(parts, None, path)
    progress.done("")
    private = parts.state.private
    # Nobody else writes to it there, so it is run from where it is.
    # And by the runtime that everybody has, since that is where it has to run.
    program = load(path, mmap=True, engine="stock")
    verified = verify_program(
        program, parts.spec_file, parts.units, model, private, progress, parts.examples
    )
    return verified, linked


def _doubtful(parts: Parts, verified: Verified) -> frozenset[str]:
    """Methods that are wrong, or that a wrong flow is made of, out of the cache or made from what
    others of their structure are."""
    wrong = {c.name for c in verified.methods.values() if not c.right}
    for flow in verified.flows:
        if not flow.right:
            steps = parts.spec_file.steps[flow.name.removeprefix("flow ")]
            wrong.update(*(step.methods for step in steps))
    return frozenset(wrong - (parts.objects.compiled - parts.objects.rebound))


@contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        place = Path(os.path.realpath(target))  # where its file is, to be moved to in one step
        try:
            folder = stack.enter_context(scratch_folder(place.parent, place.name))
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
        yield folder
