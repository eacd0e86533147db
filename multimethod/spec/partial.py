"""A draft: the records of a spec that may be wrong in places, without those places.

One mistake must not hide the others. What cannot be made into a record is left out, and its name
is kept, so that a rule about the rest neither misses it nor stumbles over it. What remains of a
method or flow without its wrong fields is still checked field by field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs
from attrs import define, frozen

from mmpack.multimethod.spec.expand import (
    Expanded,
    Origin,
    expand_all,
    expand_one,
    unknown_symbols,
    wrong_templates,
)
from mmpack.multimethod.spec.expand_flows import ExpandedFlow, expand_flows
from mmpack.multimethod.spec.mistakes import Finding, Keys
from mmpack.multimethod.spec.records import FlowSpec, MethodSpec, Spec
from mmpack.multimethod.spec.structure import structure

_NAMED = ("model", "methods", "targets", "dims", "state", "flow", "constants", "files")
"""The sections whose entries stand on their own: one may be wrong and the rest right."""
_STAND_INS: dict[str, Any] = {"mmpack": 1, "model": {}, "targets": {}, "methods": {}}
"""For what must be given and was not; a rule asks `lost` before it believes them."""
_STAND_IN_FIELDS: dict[type, dict[str, Any]] = {
    MethodSpec: {"module": ".", "target": ""},
    FlowSpec: {"cut": {}, "steps": [], "outputs": []},
}


@frozen
class Remains:
    """What is left of a method: itself with defaults in the place of its `spoilt` fields."""

    name: str
    method: MethodSpec
    origin: Origin
    spoilt: frozenset[str]


@define
class Draft:
    """`broken` holds the keys of what was left out: ("methods", "attention") or ("model",).
    `remains`: what is left of such methods."""

    spec: Spec
    broken: frozenset[Keys]
    methods: dict[str, Expanded[MethodSpec]]
    flows: dict[str, ExpandedFlow]
    findings: list[Finding]
    remains: list[Remains]

    def lost(self, section: str, name: str | None = None) -> bool:
        """Whether a section, or a name in it, is in the file but could not be read."""
        if (section,) in self.broken or (section, name) in self.broken:
            return True
        if section != "methods" or name is None:
            return False
        return any(
            _pattern(str(keys[1])).fullmatch(name)
            for keys in self.broken
            if keys[0] == "methods" and len(keys) > 1
        )


def draft(data: dict[str, Any]) -> Draft:
    """Makes records of all that can be made into records."""
    spec, findings = structure(data, Spec)
    broken: set[Keys] = {_entry(finding.keys, data) for finding in findings} - {()}
    broken |= {(key,) for key in _STAND_INS if key not in data}
    if spec is None:
        spec, more = structure(_without(data, broken), Spec)
        assert spec is not None, more
    expansion = expand_all(spec)
    findings += expansion.findings
    broken |= {_entry(finding.keys, data) for finding in expansion.findings}
    flows, wrong = expand_flows(*_flows(data, spec, findings))
    findings += wrong
    broken |= {finding.keys[:2] for finding in wrong}
    spec = attrs.evolve(spec, flow={name: made.flow.item for name, made in flows.items()})
    remains, templates = _remaining_methods(data, findings)
    findings += templates
    return Draft(spec, frozenset(broken), expansion.methods, flows, findings, remains)


def _remaining_methods(
    data: dict[str, Any], findings: list[Finding]
) -> tuple[list[Remains], list[Finding]]:
    """What is left of the methods that `findings` are about, and what else is wrong with their
    templates."""
    remains: list[Remains] = []
    found: list[Finding] = []
    for name, entry, wrong in _spoilt_entries(data, "methods", findings):
        made = _remains(MethodSpec, entry, wrong)
        if made is None:
            continue
        method, spoilt = made
        templates = [] if "each" in spoilt else wrong_templates(name, method)
        found += [f for f in templates if f not in findings and f.keys[2:3] != ("each",)]
        if "each" not in spoilt and not templates:
            for full_name, expanded in expand_one(name, method).items():
                remains.append(Remains(full_name, expanded.item, expanded.origin, spoilt))
            continue
        # It cannot be known what its templates become.
        kept = {a.name: getattr(method, a.name) for a in attrs.fields(MethodSpec)}
        unfilled = {field for field, value in kept.items() if unknown_symbols(value, {}, ())}
        remains.append(Remains(name, method, Origin(("methods", name), {}), spoilt | unfilled))
    return remains, found


def _flows(
    data: dict[str, Any], spec: Spec, findings: list[Finding]
) -> tuple[dict[str, FlowSpec], dict[str, frozenset[str]]]:
    """All flows in their order, what is left of the spoilt ones among them; and their spoilt
    fields. A wrong step leaves an empty one in its place."""
    left: dict[str, FlowSpec] = {}
    spoilt: dict[str, frozenset[str]] = {}
    for name, entry, wrong in _spoilt_entries(data, "flow", findings):
        steps = entry.get("steps")
        numbers = {keys[3] for keys in wrong if keys[2:3] == ("steps",) and len(keys) > 3}
        if isinstance(steps, list) and numbers:
            kept = [{} if n in numbers else step for n, step in enumerate(steps)]
            others = [keys for keys in wrong if keys[2:3] != ("steps",)]
            made = _remains(FlowSpec, {**entry, "steps": kept}, others)
        else:
            made = _remains(FlowSpec, entry, wrong)
        if made is not None:
            left[name], spoilt[name] = made[0], made[1] | ({"steps"} if numbers else set())
    whole = {**spec.flow, **left}
    order = data.get("flow")
    names = order if isinstance(order, dict) else whole
    return {name: whole[name] for name in names if name in whole}, spoilt


def _spoilt_entries(
    data: dict[str, Any], section: str, findings: list[Finding]
) -> Iterable[tuple[str, dict[str, Any], list[Keys]]]:
    """The mappings of a section that something is wrong with, and where in them."""
    entries = data.get(section)
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        wrong = [f.keys for f in findings if f.keys[:2] == (section, name)]
        if wrong and isinstance(name, str) and isinstance(entry, dict):
            yield name, entry, wrong


def _remains(
    cls: type[Any], entry: dict[str, Any], wrong: Iterable[Keys]
) -> tuple[Any, frozenset[str]] | None:
    """A record of what is right in an entry, and the names of the fields that it has defaults for
    since they are not; None if there is more wrong than these fields."""
    spoilt = {str(keys[2]) for keys in wrong if len(keys) > 2}
    stand_ins = _STAND_IN_FIELDS[cls]
    spoilt |= stand_ins.keys() - entry.keys()
    rest = {key: value for key, value in entry.items() if key not in spoilt}
    made, _ = structure({**stand_ins, **rest}, cls)
    return None if made is None else (made, frozenset(spoilt))


def _entry(keys: Keys, data: dict[str, Any]) -> Keys:
    """The entry that a finding spoils."""
    named = bool(keys) and keys[0] in _NAMED and isinstance(data.get(str(keys[0])), dict)
    return keys[:2] if named else keys[:1]


def _without(data: dict[str, Any], broken: set[Keys]) -> dict[str, Any]:
    rest: dict[str, Any] = {}
    for key, value in data.items():
        if (key,) in broken:
            continue
        if key in _NAMED:
            value = {k: v for k, v in value.items() if (key, k) not in broken}
        rest[key] = value
    return {**_STAND_INS, **rest}


def _pattern(template: str) -> re.Pattern[str]:
    """Matches all names that a template could have become."""
    return re.compile(".+".join(re.escape(part) for part in re.split(r"\{[^{}]*\}", template)))
