"""Where a build's program goes: a place that can be written to, and is none of its sources."""

from __future__ import annotations

import os
from pathlib import Path

from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.link.linker import data_place
from mmpack.multimethod.outputs import refuse_overwriting
from mmpack.multimethod.spec import SpecFile


def require_place(spec_file: SpecFile, output: Path) -> None:
    """Raise OutputError: what would fail at the very end is said at the beginning."""
    _require_writable(output)
    refuse_overwriting(output, _sources(spec_file))
    if (name := data_name(spec_file, output)) is not None:
        refuse_overwriting(data_place(output, name), _sources(spec_file))


def data_name(spec_file: SpecFile, output: Path) -> str | None:
    """The `.ptd` file beside the output that is to have the weights; None if they stay inside."""
    data = spec_file.spec.data
    return None if data == "inside" else f"{output.stem}.ptd" if data == "separate" else data


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
    if target.is_dir():
        raise OutputError(f"{target}: is a folder, expected the name of a file")
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{target}: cannot be written: no permission to write in {folder}")
