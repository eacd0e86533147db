"""Files that travel inside a program, for whoever runs it: a tokenizer, say.

Each is the named data blob `mmpack.file.<name>`, which the runtime ignores; the manifest lists
them with their sizes. What was built or linked never needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.integrity import PREFIX
from mmpack.multimethod.link.manifest import Manifest
from mmpack.multimethod.signature import wrong_file_name

FILE_PREFIX = f"{PREFIX}file."


def file_extents(file: PteFile) -> dict[str, Extent]:
    """Where each file in a program lies, by its name."""
    return {
        key.removeprefix(FILE_PREFIX): file.segments[segment]
        for key, segment in file.named.items()
        if key.startswith(FILE_PREFIX)
    }


def require_files(file: PteFile, manifest: Manifest | None) -> None:
    """Raises FormatError unless the manifest lists just the files that are there."""
    there = {name: extent.size for name, extent in file_extents(file).items()}
    for mistake in _mistakes(there, manifest.files if manifest is not None else {}):
        raise FormatError(f"{file.path}: manifest: {mistake}")


def _mistakes(there: Mapping[str, int], listed: Mapping[str, int]) -> Iterator[str]:
    for name in sorted(there.keys() | listed.keys()):
        if message := wrong_file_name(name):
            yield f"a file's name: {message}"
        elif name not in there:
            yield f"the program has no file {name!r}"
        elif name not in listed:
            yield f"does not list the file {name!r}"
        elif there[name] != listed[name]:
            yield f"file {name!r} has {there[name]} bytes, and {listed[name]} are listed"
