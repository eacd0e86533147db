"""spec.yaml -> model.pte: what can be known before torch is imported, and a worker that imports it
at the same time; then the stages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.pool import cores
from mmpack.multimethod.compile.spare import Spare, spare
from mmpack.multimethod.driver.place import require_place
from mmpack.multimethod.errors import SpecError, TargetError, nearest
from mmpack.multimethod.progress import Progress, Silent, Stopwatch
from mmpack.multimethod.spec import SpecFile, load_spec
from mmpack.multimethod.targets import BACKENDS

if TYPE_CHECKING:
    from mmpack.multimethod.driver.records import BuildReport


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
    watch = Stopwatch(progress or Silent())
    spec_file = load_spec(spec)
    target = Path(output) if output is not None else Path(f"{spec_file.path.stem}.pte")
    require_place(spec_file, target)
    _require_methods(spec_file, why)
    with ExitStack() as opened:
        store = opened.enter_context(Cache(Path(cache) if cache is not None else None))
        begun = _begun(spec_file, store, opened) if cluster is None else None

        # Here, since they import torch, which takes as long as all before this.
        from mmpack.multimethod.compile.cluster import connected
        from mmpack.multimethod.compile.means import Means
        from mmpack.multimethod.driver.room import require_room_for_methods
        from mmpack.multimethod.driver.stages import run_stages

        _require_backends(spec_file)
        if verify:
            require_room_for_methods(spec_file)
        workers = opened.enter_context(connected(cluster)) if cluster is not None else None
        means = Means(jobs, memory, workers, begun)
        return run_stages(
            spec_file, target, store, means, verify=verify, share=share, why=why, progress=watch
        )


def _begun(spec_file: SpecFile, store: Cache, opened: ExitStack) -> Spare | None:
    """A worker, where it takes no core from this process; of the target that most methods have,
    if it is certain that it is to be had."""
    (name, _), *_ = Counter(m.target for m in spec_file.methods.values()).most_common()
    target = spec_file.spec.targets[name]
    backend = BACKENDS[target.backend]
    if backend.external or cores() < 2:
        return None
    environment = backend.environment(backend.options(target.options))
    try:
        log = store.scratch("spare.log")
        return opened.enter_context(spare(environment, log, target.backend, target.options))
    except OSError:  # no process, or no file, is to be had; perhaps none will be needed
        return None


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
