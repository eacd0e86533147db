"""What a unit's object is made of, part by part, so that of two it can be said in what they differ:
kept beside each object in the cache, since a fingerprint is but one hash.

Short values stand for themselves, all others for a hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Parts = Mapping[str, Mapping[str, str]]
"""Kind -> name -> a value as JSON, or `#` and a hash."""

LONGEST = 80
"""Characters of a value that stands for itself."""
ROOT = "."
"""What the module of a method is called, as in specs."""
SHOWN = 4
"""So many names are told of those that differ in the same way."""

_NOUNS = {
    "backend": "backend",
    "option": "target option",
    "input": "input",
    "dim": "dim",
    "setting": "setting",
    "module": "class of submodule",
    "attribute": "attribute",
    "behaviour": "hook or local class of submodule",
    "weight": "weight",
    "name": "model's name for weight",
    "code": "code of",
    "file": "text of file",
    "package": "version of",
    "own file": "mmpack's own file",
    "state": "mark as shared state of buffer",
    "calibration": "calibration's",
}
"""Kind -> what its names are, in the order in which differences are told."""
_WITHIN = {"attribute": "module", "behaviour": "module", "name": "weight", "code": "file"}
"""Kinds whose names begin or end with one of another kind, and come and go with that."""


def parts_of(content: Mapping[str, Any], code: Parts) -> dict[str, Mapping[str, str]]:
    """The parts of a unit, from the content that `fingerprint.py` hashes. code: those of its
    code."""
    backend, options = content["target"]
    modules = {_below(name): told for name, told in content["modules"]}
    tensors = {_below(name): told for name, told in content["tensors"].items()}
    versions = content["versions"]
    packages = {**versions["packages"], "python": versions["python"]}
    packages["torch, as imported,"] = versions["torch"]
    return {
        "backend": _texts({"": backend}),
        "option": _texts(options),
        "input": _texts({v["name"]: _without(v, "name") for v in content["inputs"]}),
        "dim": _texts({name: _without(dim, "name") for name, dim in content["dims"].items()}),
        "setting": _texts({name: content[name] for name in ("method", "outputs", "io")}),
        "module": _texts({name: told[0] for name, told in modules.items()}),
        "attribute": _texts(dict(_attributes(modules))),
        "behaviour": _texts({name: told[2:] for name, told in modules.items()}),
        "weight": {name: _hash(told[1]) for name, told in tensors.items()},
        "name": _texts({name: told[0] for name, told in tensors.items()}),
        **code,
        "package": _texts(packages),
        "own file": {name: _hash(told) for name, told in versions["mmpack"]},
    }


def code_parts(files: Sequence[Any]) -> dict[str, dict[str, str]]:
    """The parts of what `sources.reachable` gives."""
    return {
        "code": dict(_code(files)),
        "file": {file[0]: _hash(file[1]) for file in files},
    }


def decided_parts(marks: Sequence[str], plan: Any) -> dict[str, dict[str, str]]:
    """What is settled between methods besides. marks: buffers of shared state that the method only
    reads. plan: what `quantize.content_of` gives."""
    calls, ranges = plan or (None, None)
    return {
        "state": dict.fromkeys(marks, "#"),
        "calibration": {"calls": _hash(calls), "ranges": _hash(ranges)},
    }


def differences(old: Parts, new: Parts) -> list[str]:
    """In what `new` differs from `old`, in words; nothing where it does not."""
    told: list[str] = []
    rewritten = {_home("code", name) for name in _differing(old, new, "code")}
    for kind, noun in _NOUNS.items():
        before, after = old.get(kind, {}), new.get(kind, {})
        alike: dict[str, list[str]] = {}
        for name in _differing(old, new, kind):
            both = name in before and name in after
            if kind == "file" and both and name in rewritten:
                continue  # the code that changed in it is told
            whole = _WITHIN.get(kind)
            if whole and not both and _home(kind, name) in _differing(old, new, whole, one=True):
                continue  # it came or went with the whole
            change = _change(before.get(name), after.get(name))
            alike.setdefault(change, []).append(_shown(kind, name, old, new))
        for change, names in alike.items():
            told.append(f"{noun} {_listed(names)}".rstrip() + change)
    return told


def _differing(old: Parts, new: Parts, kind: str, *, one: bool = False) -> list[str]:
    """Names of a kind that differ. one: only those that one of both has."""
    before, after = old.get(kind, {}), new.get(kind, {})
    names = dict.fromkeys([*after, *before])
    return [
        name
        for name in names
        if before.get(name) != after.get(name) and not (one and name in before and name in after)
    ]


def _home(kind: str, name: str) -> str:
    """The name of the whole that something is within."""
    if kind == "code":
        return name.rpartition(" in ")[2]
    return (name.rpartition(".")[0] or ROOT) if kind == "attribute" else name


def _change(before: str | None, after: str | None) -> str:
    if before is None:
        return " is new" if after is None or after.startswith("#") else f" is new: {after}"
    if after is None:
        return " is gone"
    if before.startswith("#") or after.startswith("#"):
        return " changed"
    return f" is {after}, was {before}"


def _shown(kind: str, name: str, old: Parts, new: Parts) -> str:
    """A weight as the model calls it, if that has it."""
    if kind in ("code", "backend"):  # "code of Wrapper in model.py"; the one backend has no name
        return name
    if kind == "weight":
        in_model = new.get("name", {}).get(name) or old.get("name", {}).get(name) or "#"
        name = name if in_model.startswith("#") else json.loads(in_model) or name
    return repr(name)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return shown + more


def _attributes(modules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for module, (_, attributes, *_) in modules.items():
        for name, value in attributes:
            yield f"{module}.{name}" if module != ROOT else str(name), value


def _code(files: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Classes, functions and values of the files whose code is known by itself."""
    for file, _, *own in files:
        for name, told in own[0] if own else ():
            yield f"{name} in {file}", _hash(told)


def _below(name: str) -> str:
    """A name within the unit's module, as one within the module that it gives inputs by name."""
    return (name.removeprefix("module").removeprefix(".") or ROOT) if name else "(call)"


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    return {name: t if len(t) <= LONGEST else _hash(t) for name, t in texts.items()}


def _hash(value: Any) -> str:
    return "#" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
