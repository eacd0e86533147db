"""Python that a spec names: imported from beside the spec, and anew when it has changed.

One process may build several specs. Two folders may both hold a `layers.py`, and a file may be
edited between two builds, so what was imported from a spec's folder is forgotten when another
folder's turn comes, or when one of its files has changed.

`sys.path` and `sys.modules` belong to the whole process, so the user's Python runs for one thread
at a time. Builds of specs in *different* folders should not run at once in one process all the
same: each would forget what the other imported, and a module of a folder that is imported only
later would be made a second time. Give each a process of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

_PREFIX = "_mmpack_"
_imported: dict[str, tuple[Path, Path, str]] = {}
"""Name of a module imported from a spec's folder -> the folder, its file, its content's hash."""

_turn = threading.RLock()
_inside: list[Path] = []
"""Folders of the `importable` blocks that are open, by whoever has the turn."""


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """In the block, a user's file may import its neighbours, as it could when run as a script.
    Another thread waits until the block ends."""
    folder = folder.resolve()
    with _turn:
        if _inside and _inside[-1] == folder:  # of a block for many calls, which sees to the rest
            yield
            return
        _forget_others(folder)
        before = set(sys.modules)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        _inside.append(folder)
        try:
            yield
        finally:
            _inside.pop()
            with suppress(ValueError):  # the user's code took it out
                sys.path.remove(str(folder))
            for name in set(sys.modules) - before:
                file = _file(sys.modules[name])
                if file is not None and _came_from(folder, name, file):
                    _imported[name] = (folder, file, _hash(file))


def module_of_file(path: Path) -> ModuleType:
    """The module of a Python file, imported once for each content that it has."""
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    name = f"{_PREFIX}{path.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def places() -> list[tuple[str, str]]:
    """Folder and file of everything that specs named, for another process to import as well."""
    return [
        (str(folder), str(file))
        for name, (folder, file, _) in _imported.items()
        if name.startswith(_PREFIX)
    ]


def sources() -> list[tuple[str, str]]:
    """Folder and file of everything that was imported from specs' folders."""
    return [(str(folder), str(file)) for folder, file, _ in _imported.values()]


def plain_name(module: str) -> str:
    """A module's name without the hash that `module_of_file` puts in it."""
    return re.sub(rf"^{_PREFIX}(.+)_[0-9a-f]{{16}}$", r"\1.py", module)


def _forget_others(folder: Path) -> None:
    changed = any(
        home == folder and _hash(file) != content for home, file, content in _imported.values()
    )
    for name, (home, _, _) in list(_imported.items()):
        if home != folder or changed:
            sys.modules.pop(name, None)
            del _imported[name]


def _came_from(folder: Path, name: str, file: Path) -> bool:
    """Whether a module was found through the folder, rather than being installed below it."""
    if name.startswith(_PREFIX):
        return True
    place = folder.joinpath(*name.split("."))
    return file in (place.with_name(f"{place.name}.py"), place / "__init__.py")


def _file(module: ModuleType) -> Path | None:
    path = getattr(module, "__file__", None)
    return Path(path).resolve() if isinstance(path, str) else None


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
