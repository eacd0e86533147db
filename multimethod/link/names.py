"""What the methods of several files are called in one program."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mmpack.multimethod.errors import LinkError, nearest
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.schema import ExecutionPlan
from mmpack.multimethod.signature import wrong_method_name

NAMES_ITS_GRAPH = ("QnnBackend", "CoreMLBackend")
"""Backends that look their graph up by the method's name: such a method cannot be renamed."""


def file_labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each of some files: as much of the end of its path as tells it apart."""

    def ends(path: Path) -> Iterator[str]:
        for count in range(1, len(path.parts) + 1):
            yield str(Path(*path.parts[-count:]))

    files = Counter(end for path in paths for end in ends(path))
    return [next((end for end in ends(path) if files[end] == 1), str(path)) for path in paths]


def method_names(
    files: Sequence[PteFile], rename: Mapping[str, str], constants: Iterable[str] = ()
) -> list[dict[str, str]]:
    """Per file: old name -> new name. LinkError that tells all names that two methods have and
    all renames of nothing; or, before that, files that are given twice.

    rename: "method", which renames it in every file that has it, or "file.pte:method", where
    the file is its path as given, its last part, or its label.
    """
    used: set[str] = set()
    made: list[dict[str, str]] = []
    times = Counter(file.path for file in files)
    wrong = [f"{path}: is given {count} times" for path, count in times.items() if count > 1]
    if wrong:
        raise LinkError("\n".join(wrong))
    owners: dict[str, list[tuple[PteFile, str, ExecutionPlan]]] = {}
    labels = file_labels([file.path for file in files])
    for file, label in zip(files, labels, strict=True):
        names: dict[str, str] = {}
        for plan in file.plans:
            old = plan.name or ""
            ways = (f"{file.path}:{old}", f"{label}:{old}", f"{file.path.name}:{old}", old)
            keys = [way for way in ways if way in rename]
            used.update(keys)
            new = rename[keys[0]] if keys else old
            if new != old and (message := wrong_method_name(new)):
                wrong.append(f"{file.path}: method {old!r} cannot be renamed: {message}")
            if new != old and (backend := _bound(plan)):
                wrong.append(
                    f"{file.path}: method {old!r} cannot be renamed: its {backend} delegate finds "
                    f"its graph by the method's name; lower it under the name {new!r}"
                )
            names[old] = new
            owners.setdefault(new, []).append((file, f"{label}:{old}", plan))
        made.append(names)
    taken = {*owners, *constants}
    for new, (first, *rest) in owners.items():
        wrong += [_clash(new, first, other, taken) for other in rest]
    wrong += [
        f"constant {name!r} has the name of a method in {owners[name][0][0].path}"
        for name in constants
        if name in owners
    ]
    known = [old for names in made for old in names]
    places = [f"{label}:{old}" for label, names in zip(labels, made, strict=True) for old in names]
    wrong += [
        f"cannot rename {key!r}: no such method{nearest(key, places if ':' in key else known)}"
        for key in rename
        if key not in used
    ]
    if wrong:
        raise LinkError("\n".join(wrong))
    return made


def _clash(
    name: str,
    one: tuple[PteFile, str, ExecutionPlan],
    other: tuple[PteFile, str, ExecutionPlan],
    taken: set[str],
) -> str:
    told = f"two methods are called {name!r}, in {one[0].path} and in {other[0].path}; "
    free = [(file, key) for file, key, plan in (other, one) if not _bound(plan)]
    if not free:
        return told + "their delegates find their graphs by that name: lower one under another"
    file, key = free[0]
    new = "".join(c if wrong_method_name(c) is None else "_" for c in f"{file.path.stem}_{name}")
    while new in taken:
        new += "_"
    taken.add(new)
    return told + f"rename one: --rename {shlex.quote(f'{key}={new}')}"


def _bound(plan: ExecutionPlan) -> str:
    """The backend that holds a method to its name, if there is one."""
    return next((d.id for d in plan.delegates or () if d.id in NAMES_ITS_GRAPH), "")
