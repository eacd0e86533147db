"""Python that a unit brings along: the user's code that registers the operators of its program.

A worker of the same machine imports it from where it is. Elsewhere the files come with the unit,
and are unpacked; what was installed as a package must be installed there too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from attrs import field, frozen

from mmpack.multimethod.compile.imports import importable, module_of_file, places, sources
from mmpack.multimethod.scratch import scratch_folder


@frozen
class Code:
    """files: (folder to import from, file), imported first. modules: names, imported then.
    texts: path of each file that was imported from those folders, relative to `root` -> what is in
    it. What is not UTF-8 in that are lone surrogates (PEP 383)."""

    files: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    root: str = ""
    texts: dict[str, str] = field(factory=dict)

    @property
    def digest(self) -> str:
        """Equal for equal code of the user's, wherever it was; "" without any."""
        if not self.files:
            return ""
        places = [os.path.relpath(part, self.root) for place in self.files for part in place]
        text = json.dumps([places, self.modules, self.texts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def carried(modules: Iterable[str]) -> Code:
    """Everything that specs of this process named, and these modules."""
    files = places()
    if not files:
        return Code(modules=tuple(modules))
    found = {file for _, file in sources()} | {file for _, file in files}
    root = os.path.commonpath([*(os.path.dirname(file) for file in found), *(f for f, _ in files)])
    texts = {
        os.path.relpath(file, root): Path(file).read_bytes().decode("utf-8", "surrogateescape")
        for file in sorted(found)
    }
    return Code(tuple(files), tuple(modules), root, texts)


def run_carried(code: Code, unpack: Path | None = None) -> None:
    """Import it. unpack: folder of this machine to unpack it into, if it is of another one. Code
    that is unpacked there already is not unpacked, or imported, again."""
    moved = {}
    if unpack is not None and code.files:
        folder = _unpacked(code, unpack)
        parts = {part for place in code.files for part in place}
        moved = {part: folder / os.path.relpath(part, code.root) for part in parts}
    for folder_, file in code.files:
        with importable(Path(moved.get(folder_, folder_))):
            module_of_file(Path(moved.get(file, file)))
    for name in code.modules:
        importlib.import_module(name)


def _unpacked(code: Code, parent: Path) -> Path:
    folder = parent / code.digest
    if not folder.exists():
        with scratch_folder(parent, code.digest) as scratch:
            for name, text in code.texts.items():
                path = scratch / "code" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode("utf-8", "surrogateescape"))
            (scratch / "code").rename(folder)
    return folder
