"""spec.yaml -> model.pte: the driver that walks the stages in their order.

check -> units -> compile (cached, in worker processes) -> link -> verify -> move into place
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
from mmpack.multimethod.compile.cluster import connected
from mmpack.multimethod.compile.exports import known_facts
from mmpack.multimethod.compile.fingerprint import Fingerprints, Print
from mmpack.multimethod.compile.means import Means
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.rehearse import Rehearsed
from mmpack.multimethod.driver.examine import Examined, assemble, rehearse_all
from mmpack.multimethod.driver.parts import Parts, compare_converted, compile_parts
from mmpack.multimethod.driver.records import BuildReport, data_name, link_parts, relabel_parts, row
from mmpack.multimethod.driver.room import require_room_for_methods, require_room_for_objects
from mmpack.multimethod.errors import OutputError, SpecError, TargetError, nearest
from mmpack.multimethod.flow.program import load
from mmpack.multimethod.link import LinkReport
from mmpack.multimethod.link.linker import data_place
from mmpack.multimethod.link.rebind import learn
from mmpack.multimethod.memory import peak_memory
from mmpack.multimethod.outputs import refuse_overwriting
from mmpack.multimethod.progress import Progress, Silent, Stopwatch
from mmpack.multimethod.scratch import scratch_folder
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.verify.checked import Verified
from mmpack.multimethod.verify.program import verify_program


def build(
    spec: str | Path,
    output: str | Path | None = None,
    *,
    jobs: int = 1,
    verify: bool = True,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    memory: int | None = None,
    why: Sequence[str] = (),
    cluster: str | None = None,
    share: bool = True,
) -> BuildReport:
    """Build the program that a spec describes.

    output: where it goes; none given: `<spec's stem>.pte` in the working directory.
    jobs: how many methods are compiled at once, each in its own process.
    verify: compare every method and flow with eager PyTorch, and write nothing if one is wrong.
    cache: the cache's folder; none given: see `scratch.cache_root`.
    memory: bytes that compiling may take, this process and its workers together, without files that
    they map: no method is begun that is not expected to fit.
    why: methods of which `progress` is told why they are compiled, if they are.
    cluster: address of a Dask scheduler, whose workers compile in place of `jobs` processes here;
    `memory` is nothing to them.
    share: lower two of the methods that differ in their weights alone, and make the others from
        these; False: lower each.

    Raises an MmpackError for everything that the user can mend. Whatever goes wrong, the output and
    the `.ptd` beside it are what they were before, and objects already compiled stay in the cache.
    """
    progress = watch = Stopwatch(progress or Silent())
    spec_file = load_spec(spec)
    target = Path(output) if output is not None else Path(f"{spec_file.path.stem}.pte")
    _require_writable(target)
    refuse_overwriting(target, _sources(spec_file))
    if (name := data_name(spec_file, target)) is not None:
        refuse_overwriting(data_place(target, name), _sources(spec_file))
    _require_backends(spec_file)
    _require_methods(spec_file, why)
    if verify:
        require_room_for_methods(spec_file)
    with ExitStack() as opened:
        store = opened.enter_context(Cache(Path(cache) if cache is not None else None))
        workers = opened.enter_context(connected(cluster)) if cluster is not None else None
        means = Means(jobs, memory, workers)
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
        seconds=watch.stop(),
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


def _require_methods(spec_file: SpecFile, names: Sequence[str]) -> None:
    """What is asked about must be there."""
    known = spec_file.methods
    wrong = [name for name in names if name not in known]
    if wrong:
        raise SpecError(
            f"{spec_file.path} has no method {name!r}{nearest(name, known)}" for name in wrong
        )


def _sources(spec_file: SpecFile) -> list[Path]:
    """The files that a spec names, and the spec itself."""
    model = spec_file.spec.model
    named = [model.factory, model.weights, spec_file.spec.sample, spec_file.spec.calibration]
    named += [method.wrapper for method in spec_file.methods.values()]
    named += [method.calibration for method in spec_file.methods.values()]
    paths = [spec_file.folder / n.partition(":")[0] for n in named if isinstance(n, str)]
    if model.huggingface is not None:
        # Its path may well hold a colon. A folder stands for all that is in it.
        place = spec_file.folder / model.huggingface
        paths += place.iterdir() if place.is_dir() else [place]
    paths += [spec_file.folder / path for path in spec_file.spec.files.values()]
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
        place = Path(os.path.realpath(target))  # where its file is, to be moved to in one step
        try:
            folder = stack.enter_context(scratch_folder(place.parent, place.name))
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
        yield folder
