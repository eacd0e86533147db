"""Links programs into one: `link(["a.pte", "b.pte"], "c.pte")`.

Any ExecuTorch programs, also ones that mmpack did not build. Every method computes afterwards
exactly what it computed before; what changes is that equal weights, delegates and named data
are stored once, that state is laid out for all methods together (`state.py`), and that a
manifest and a checksum are added.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import evolve, field, frozen

from mmpack.multimethod.errors import LinkError, OutputError
from mmpack.multimethod.link.constant_methods import constant_plan, is_constant
from mmpack.multimethod.link.data_file import DataFile
from mmpack.multimethod.link.data_write import Kept, guarded, united, write_data
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.files import file_extents
from mmpack.multimethod.link.manifest import (
    MANIFEST_KEY,
    Constant,
    Manifest,
    StateRecord,
    manifest_bytes,
)
from mmpack.multimethod.link.merge_data import merge_data
from mmpack.multimethod.link.merge_manifest import merged_manifest
from mmpack.multimethod.link.method_sizes import Sizes, sizes
from mmpack.multimethod.link.names import method_names
from mmpack.multimethod.link.outside import open_whole
from mmpack.multimethod.link.schema import ExecutionPlan, Program
from mmpack.multimethod.link.state import StateRule, lay_out_state
from mmpack.multimethod.link.state_scales import require_one_scale
from mmpack.multimethod.link.write import Segment, write_pte
from mmpack.multimethod.outputs import refuse_overwriting
from mmpack.multimethod.signature import wrong_data_name


@frozen
class LinkReport:
    """What came out. `size` is the file's, in bytes; `given` is what the inputs' weights,
    delegates, named data and files take, each input for itself, and `stored` what they take now.
    methods: bytes of these that each method reaches; where an input is one method, all of its.
    data: the file that has what is kept outside, if there is one, and its size."""

    path: Path
    size: int
    given: int
    stored: int
    methods: dict[str, int]
    state: tuple[StateRecord, ...]
    manifest: Manifest = field(repr=False)
    data: tuple[Path, int] | None = None

    @property
    def saved(self) -> int:
        return self.given - self.stored


def link(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    manifest: Manifest | None = None,
    constants: Mapping[str, Constant] | None = None,
    shared: Sequence[str] = (),
    private: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    data: str | None = None,
    anew: bool = False,
) -> LinkReport:
    """Writes one program with all methods of the inputs, in their order.

    rename: "method" or "file.pte:method" -> new name.
    manifest: what to put in; none given: what the inputs' manifests and plans say. Sizes, state,
        constants and files are filled in here either way.
    constants: methods that take nothing and return this value, as ExecuTorch's own
        `constant_methods`.
    shared, private: buffers that several inputs have, by name or pattern; see `state.py`.
    files: more of what travels inside the program, by name (`files.py`). Those of the inputs stay;
        one that several inputs have must be the same in all.
    data: the name of a `.ptd` file beside the output, for constants and delegates' weights; none
        given: all are in the output, wherever the inputs have theirs. One that is there already
        keeps what it holds, so that several programs can share it; with `anew` it is replaced.
    Raises FormatError for an input that cannot be read, LinkError for inputs that do not fit
    together, OutputError if the output cannot be written.
    """
    if not inputs:
        raise LinkError("nothing to link: no input was given")
    refuse_overwriting(output, inputs)
    place = data_place(output, data) if data is not None else None
    if place is not None:
        refuse_overwriting(place, inputs)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_whole(path)) for path in inputs]
        for file in opened:
            _refuse_unknown(file)
        names = method_names(opened, rename or {}, constants or {})
        before = [sizes(file) for file in opened]
        reached = _reached(opened, names, before)
        known = manifest if manifest is not None else merged_manifest(opened, names)
        merged = merge_data(opened, apart=place is not None)
        for name, content in (files or {}).items():
            merged.add_file(name, content)
        plans = _plans(opened, names)
        rule = StateRule(shared, private)
        state = lay_out_state(plans, rule, [str(file.path) for file in opened], merged.initial)
        require_one_scale(state, known.methods)
        merged.renumber(plans)
        added = [constant_plan(name, value) for name, value in (constants or {}).items()]
        known = evolve(
            known,
            methods={n: evolve(r, size=reached.get(n, r.size)) for n, r in known.methods.items()},
            state=state,
            constants={**known.constants, **(constants or {})},
            files=merged.files,
            data=merged.record(place.name) if place is not None else None,
        )
        merged.add_named(MANIFEST_KEY, manifest_bytes(known))
        linked = Program(_version(opened), [*(plan for _, _, plan in plans), *added])
        filled = merged.fill(linked)
        if place is not None and merged.kept:
            size, beside = _write_both(output, filled, merged.segments, place, merged.kept, anew)
        else:
            size, place, beside = write_pte(output, filled, merged.segments), None, 0
        brought = [extent.size for file in opened for extent in file_extents(file).values()]
    given = sum(one.stored for one in before) + sum(brought) + sum(map(len, (files or {}).values()))
    return LinkReport(
        Path(output),
        size,
        given,
        merged.stored,
        reached,
        state,
        known,
        (place, beside) if place is not None else None,
    )


def data_place(output: str | os.PathLike[str], name: str) -> Path:
    """Where a `.ptd` of this name is, beside an output. LinkError if it cannot be called so."""
    if message := wrong_data_name(name):
        raise LinkError(message)
    place = Path(os.path.realpath(output)).parent / name  # where `replacing` puts the output
    if place.is_dir():
        raise OutputError(f"{place}: is a folder, expected the name of a file")
    if place == Path(os.path.realpath(output)):
        raise LinkError(f"{output}: the program and its data cannot be one file")
    return place


def _write_both(
    output: str | os.PathLike[str],
    program: Program,
    segments: Sequence[Segment],
    place: Path,
    kept: Mapping[str, Kept],
    anew: bool,
) -> tuple[int, int]:
    """Writes a program and the data beside it; the sizes of both. If one of them cannot be written,
    both are what they were before."""
    with ExitStack() as stack:
        stack.enter_context(guarded(place))
        beside = 0
        all_of_it: Mapping[str, Kept] | None = kept
        if place.exists() and not anew:
            found = stack.enter_context(DataFile.open(place))
            beside, all_of_it = found.size, united(found, kept)

        def data_first() -> None:
            nonlocal beside
            if all_of_it is not None:
                beside = write_data(place, all_of_it)

        return write_pte(output, program, segments, before=data_first), beside


def _plans(
    files: Sequence[PteFile], names: Sequence[Mapping[str, str]]
) -> list[tuple[int, str, ExecutionPlan]]:
    """(input file, name in the output, plan), the plans renamed in place."""
    made = []
    for number, file in enumerate(files):
        for plan in file.plans:
            plan.name = names[number][plan.name or ""]
            made.append((number, plan.name, plan))
    return made


def _reached(
    files: Sequence[PteFile], names: Sequence[Mapping[str, str]], before: Sequence[Sizes]
) -> dict[str, int]:
    """Bytes that each method reaches, by its new name."""
    made = {}
    for file, renamed, size in zip(files, names, before, strict=True):
        alone = sum(not is_constant(plan) for plan in file.plans) == 1
        for plan in file.plans:
            old = plan.name or ""
            whole = alone and not is_constant(plan)
            made[renamed[old]] = size.stored if whole else size.methods[old].total
    return made


def _version(files: Sequence[PteFile]) -> int:
    versions = {file.program.version: file.path for file in files}
    if len(versions) > 1:
        told = ", ".join(f"{path} has {version}" for version, path in sorted(versions.items()))
        raise LinkError(f"the inputs have different schema versions: {told}")
    return next(iter(versions))


def _refuse_unknown(file: PteFile) -> None:
    if file.unknown:
        raise LinkError(
            f"{file.path}: has fields that this mmpack does not know and would lose "
            f"({', '.join(file.unknown)}): it was made by a newer ExecuTorch"
        )
