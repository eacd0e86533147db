"""The code that some classes can reach: a hash for every Python file behind it.

Their own files, and what these import. Of installed packages only the modules of the same
package are followed; Python's own library and some packages are known by their versions.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import frozen

from mmpack.multimethod.compile.describe import Describer
from mmpack.multimethod.compile.imports import plain_name

PACKAGES = ("torch", "executorch", "numpy", "sympy")
"""Not looked into: a fingerprint holds their versions."""

_STDLIB = sysconfig.get_paths()["stdlib"]


@frozen
class _Source:
    """A module by name, its file, and the module itself if it was imported already."""

    name: str
    path: str
    module: ModuleType | None


def reachable(modules: Iterable[str], describer: Describer) -> list[list[Any]]:
    """Name and content of every module that these (by name) can reach, themselves included."""
    seen: dict[str, list[Any]] = {}
    waiting = [source for name in modules if (source := _imported(name)) is not None]
    while waiting:
        source = waiting.pop()
        if source.name in seen or _is_foundation(source.name, source.path):
            continue
        content: list[Any] = [plain_name(source.name), hash_file(source.path)]
        if not is_installed(source.path) and source.module is not None:
            content.append(describer.module_code(source.module))
        seen[source.name] = content
        waiting.extend(_uses(source))
    return sorted(seen.values(), key=lambda content: str(content[:2]))


def hash_file(path: str | Path) -> str:
    """sha256 of a file's content, read again only when its time or size has changed."""
    stat = Path(path).stat()
    return _hash_file(str(path), stat.st_mtime_ns, stat.st_size)


@cache
def _hash_file(path: str, modified: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def is_installed(path: str) -> bool:
    return "site-packages" in Path(path).parts or "dist-packages" in Path(path).parts


def _imported(name: str) -> _Source | None:
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None)
    return _Source(name, path, module) if path is not None and Path(path).is_file() else None


def _uses(source: _Source) -> list[_Source]:
    names = _held(source.module) if source.module is not None else set()
    if is_installed(source.path):
        package = source.name.partition(".")[0]
        names = {name for name in names if name.partition(".")[0] == package}
        return [found for name in names if (found := _imported(name)) is not None]
    used = [found for name in names if (found := _imported(name)) is not None]
    if source.path.endswith(".py"):
        stat = Path(source.path).stat()
        package = getattr(source.module, "__package__", None) or ""
        for name in _import_statements(source.path, stat.st_mtime_ns, package):
            found = _imported(name) or _neighbour(source, name)
            if found is not None:
                used.append(found)
    return used


def _held(module: ModuleType) -> set[str]:
    """Names of the modules that a module's values come from."""
    held = set()
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            held.add(value.__name__)
        elif isinstance(getattr(value, "__module__", None), str):
            held.add(value.__module__)
    return held


@cache
def _import_statements(path: str, modified: int, package: str) -> frozenset[str]:
    """Names of all modules that a file imports, anywhere in it. A number that was imported does
    not tell where it came from, and an import inside a function may not have run yet."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            home = ".".join([*(parents if node.level else ()), *filter(None, [node.module])])
            names.add(home)
            names.update(f"{home}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _neighbour(source: _Source, name: str) -> _Source | None:
    """A module that was not imported yet, if it lies beside the file that would import it."""
    place = Path(source.path).parent.joinpath(*name.split("."))
    for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if path.is_file():
            return _Source(name, str(path), None)
    return None


def _is_foundation(name: str, path: str) -> bool:
    """Python's own library, and packages whose version is hashed instead."""
    if name.partition(".")[0] in PACKAGES:
        return True
    if name.startswith("mmpack.multimethod"):
        return True  # see fingerprint.OWN_CODE
    return path.startswith(_STDLIB) and not is_installed(path)
