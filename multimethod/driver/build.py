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
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.fingerprint import Print, fingerprints
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.driver.examine import Examined, assemble, rehearse_all
from mmpack.multimethod.driver.parts import Parts, compare_converted, compile_parts
from mmpack.multimethod.driver.records import BuildReport, data_name, link_parts, row
from mmpack.multimethod.driver.room import require_room_for_methods, require_room_for_objects
from mmpack.multimethod.errors import OutputError, SpecError, TargetError, nearest
from mmpack.multimethod.flow.program import load
from mmpack.multimethod.link.linker import data_place
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
) -> BuildReport:
    """Build the program that a spec describes.

    output: where it goes; none given: `<spec's stem>.pte` in the working directory.
    jobs: how many methods are compiled at once, each in its own process.
    verify: compare every method and flow with eager PyTorch, and write nothing if one is wrong.
    cache: the cache's folder; none given: see `scratch.cache_root`.
    memory: bytes that compiling may take, this process and its workers together, without files that
    they map: no method is begun that is not expected to fit.
    why: methods of which `progress` is told why they are compiled, if they are.

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
    with Cache(Path(cache) if cache is not None else None) as store:
        made, prints = _examined(spec_file, store, verify)
        model, units = made.model, made.units
        # What a fingerprint overlooks makes a stale object, and verification finds it. Without
        # verification nothing is taken from the cache.
        fresh = frozenset() if verify else frozenset(units)
        parts = compile_parts(made, prints, store, jobs, progress, fresh, memory, why)
        verified = _verify(parts, model, target, progress) if verify else None
        if verified is not None and (stale := _doubtful(parts, verified)):
            parts = compile_parts(made, prints, store, jobs, progress, stale, memory)
            verified = _verify(parts, model, target, progress)
        if verified is not None:
            verified.require_right()
        # In any case: a conversion that went wrong is none of the user's doing.
        heads = compare_converted(parts, model, store, jobs, progress, memory)
        parts = attrs.evolve(parts, heads=heads)
    progress.stage("link", 1)
    report = link_parts(parts, verified, target)
    progress.done("")
    return BuildReport(
        output=target,
        methods=tuple(row(parts, name, report, verified) for name in units),
        flows=verified.flows if verified is not None else (),
        link=report,
        seconds=watch.stop(),
        memory=(peak_memory(), parts.objects.memory),
        together=parts.objects.together,
    )


def _examined(spec_file: SpecFile, store: Cache, verify: bool) -> tuple[Examined, dict[str, Print]]:
    """The model and its methods, with their fingerprints. Methods that the cache knows were tried
    when they got there, and are not tried again."""
    found = Collected()
    made = assemble(spec_file, found)
    prints = {} if found else fingerprints(made.units, state_names(made.model))
    if not verify or found or not all(store.facts(p.digest) is not None for p in prints.values()):
        rehearse_all(made, found, verify=verify)
    found.check()
    return made, prints


def _verify(parts: Parts, model: nn.Module, target: Path, progress: Progress) -> Verified:
    """Link the parts beside the target and run them. What is shipped is linked once more, since
    its manifest holds the errors that are measured here."""
    require_room_for_objects(parts)
    with _scratch_beside(target) as folder:
        path = folder / "linked" / target.name  # `folder` itself is locked by its owner
        path.parent.mkdir()
        progress.stage("link", 1)
        link_parts(parts, None, path)
        progress.done("")
        private = parts.state.private
        # Nobody else writes to it there, so it is run from where it is.
        # And by the runtime that everybody has, since that is where it has to run.
        program = load(path, mmap=True, engine="stock")
        return verify_program(
            program, parts.spec_file, parts.units, model, private, progress, parts.examples
        )


def _doubtful(parts: Parts, verified: Verified) -> frozenset[str]:
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
        try:
            folder = stack.enter_context(scratch_folder(target.parent, target.name))
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
        yield folder
