"""What the methods of several files are called in one program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmpack.multimethod.errors import LinkError, nearest
from mmpack.multimethod.link.file import PteFile

NAMES_ITS_GRAPH = ("QnnBackend", "CoreMLBackend")
"""Backends that look their graph up by the method's name: such a method cannot be renamed."""


def method_names(
    files: Sequence[PteFile], rename: Mapping[str, str], constants: Iterable[str] = ()
) -> list[dict[str, str]]:
    """Per file: old name -> new name. LinkError for two of one name, or a rename of nothing.

    rename: "method", which renames it in every file that has it, or "file.pte:method", where
    the file is its path as given or its last part.
    """
    used: set[str] = set()
    made: list[dict[str, str]] = []
    owner: dict[str, str] = {}
    for file in files:
        names: dict[str, str] = {}
        for plan in file.plans:
            old = plan.name or ""
            ways = (f"{file.path}:{old}", f"{file.path.name}:{old}", old)
            keys = [way for way in ways if way in rename]
            used.update(keys[:1])
            new = rename[keys[0]] if keys else old
            if not new or "\0" in new:
                raise LinkError(f"{file.path}: method {old!r} cannot be renamed to {new!r}")
            bound = [d.id for d in plan.delegates or () if d.id in NAMES_ITS_GRAPH]
            if new != old and bound:
                raise LinkError(
                    f"{file.path}: method {old!r} cannot be renamed: its {bound[0]} delegate finds "
                    f"its graph by the method's name; lower it under the name {new!r}"
                )
            names[old] = new
            if new in owner:
                raise LinkError(
                    f"two methods are called {new!r}, in {owner[new]} and in {file.path}; "
                    f"rename one: --rename {file.path.name}:{old}=<name>"
                )
            owner[new] = str(file.path)
        made.append(names)
    for name in constants:
        if name in owner:
            raise LinkError(f"constant {name!r} has the name of a method in {owner[name]}")
    for key in rename:
        if key not in used:
            known = [
                f"{file.path.name}:{old}" if ":" in key else old
                for file, names in zip(files, made, strict=True)
                for old in names
            ]
            raise LinkError(f"cannot rename {key!r}: no such method{nearest(key, known)}")
    return made
