"""Does a name in the spec stand for something? Looked up without importing anything.

To import a model's file would import torch, and run it; a check may do neither. So files are
parsed, and of a package only the place of its modules is looked up.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from mmpack.multimethod.errors import nearest
from mmpack.multimethod.spec.mistakes import unknown


def wrong_factory(reference: str, folder: Path) -> str | None:
    """Why `file.py:callable` or `package.module:callable` leads nowhere, or None."""
    place, colon, name = reference.partition(":")
    if not colon or not place or not is_dotted(name):
        return f"expected file.py:callable or package.module:callable, got {reference!r}"
    if place.endswith(".py"):
        return _wrong_in_file(folder, place, name.split(".")[0], "callable")
    if not is_dotted(place):
        return f"expected file.py:callable or package.module:callable, got {reference!r}"
    return _wrong_module(place, folder)


def wrong_wrapper(reference: str, folder: Path) -> str | None:
    """Why a wrapper's name, or `file.py:Class`, leads nowhere, or None."""
    place, colon, name = reference.partition(":")
    if not colon:
        return None if reference in wrappers() else unknown("wrapper", reference, wrappers())
    if not place.endswith(".py") or not name.isidentifier():
        return f"expected the name of a wrapper, or file.py:Class; got {reference!r}"
    return _wrong_in_file(folder, place, name, "class")


@cache
def wrappers() -> frozenset[str]:
    """The names in `mmpack.wrappers`: one file each."""
    package = importlib.util.find_spec("mmpack.wrappers")
    folders = package.submodule_search_locations if package is not None else None
    files = (path for folder in folders or () for path in Path(folder).glob("*.py"))
    return frozenset(path.stem for path in files if not path.stem.startswith("_"))


def wrong_weights(name: str, folder: Path) -> str | None:
    """Why this is no safetensors file beside the spec, or None. Only its first bytes are read: the
    length of the header, and how that begins."""
    if message := wrong_file(name, folder):
        return message
    try:
        with (folder / name).open("rb") as file:
            begins = file.read(9)
    except OSError as error:
        return f"{name!r} cannot be read: {error.strerror}"
    if begins[8:] == b"{":
        return None
    message = f"expected a safetensors file, and {name!r} is "
    if begins[:2] in (b"PK", b"\x80\x02"):  # a zip archive, or a pickle
        change = "safetensors.torch.save_file(torch.load(…), …) makes one of it"
        return f"{message}what torch.save writes; {change}"
    return f"{message}{'something else' if begins else 'empty'}"


def wrong_file(name: str, folder: Path) -> str | None:
    """Why there is no such file beside the spec, or None."""
    if not name:
        return "expected the name of a file, got the empty text"
    try:
        if (folder / name).is_file():
            return None
        if (folder / name).is_dir():
            return f"expected a file, got the folder {name!r}"
    except (OSError, ValueError):
        pass
    return f"there is no file {name!r} beside the spec{_beside(folder, Path(name).suffix)}"


def is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _beside(folder: Path, suffix: str) -> str:
    if not suffix:
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.suffix == suffix)
    return f"; there is {', '.join(names[:8])}" if names else ""


def _wrong_in_file(folder: Path, place: str, name: str, wanted: str) -> str | None:
    if message := wrong_file(place, folder):
        return message
    try:
        tree = ast.parse((folder / place).read_bytes())
    except SyntaxError as error:
        return f"{place} is not Python: line {error.lineno}: {error.msg}"
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return f"{place} cannot be read as Python: {error}"
    defined = dict(_defined(tree.body))
    if "*" in defined or "__getattr__" in defined:
        return None  # what else there is, only an import can tell
    if name not in defined:
        known = [n for n, kind in defined.items() if kind in (wanted, "class", "function")]
        return f"{place} defines no {wanted} {name!r}{nearest(name, known)}"
    if wanted == "class" and defined[name] == "function":
        return f"expected a class, and {name!r} in {place} is a function"
    return None


def _defined(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """The names that a module's statements define, each with what it is."""
    for statement in body:
        match statement:
            case ast.ClassDef(name=name):
                yield name, "class"
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, "function"
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    yield alias.asname or alias.name.split(".")[0], "import"
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                for node in ast.walk(statement):
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        yield node.id, "value"
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _defined(getattr(statement, inner, []))
        for handler in getattr(statement, "handlers", []):
            yield from _defined(handler.body)


def _wrong_module(name: str, folder: Path) -> str | None:
    """Why a module cannot be found. Its parent packages are not imported either: the folders
    that they would search are asked in their place."""
    parts = name.split(".")
    try:
        found = _find(parts[0], None) or PathFinder.find_spec(parts[0], [str(folder)])
        for number, part in enumerate(parts[1:], start=1):
            if found is None:
                break
            package = ".".join(parts[:number])
            if found.submodule_search_locations is None:
                return f"{package!r} is a module, not a package; it holds no {part!r}"
            found = _find(f"{package}.{part}", list(found.submodule_search_locations))
            if found is None:
                return f"the package {package!r} has no module {part!r}"
    except (ImportError, KeyError, AttributeError, ValueError, OSError):
        return None  # a finder that wants the parent imported: the import itself will tell
    return None if found else f"no module is called {parts[0]!r}"


def _find(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if (found := finder.find_spec(name, path)) is not None:
            return found
    return None
