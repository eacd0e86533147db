"""A draft: the records of a spec that may be wrong in places, without those places.

One mistake must not hide the others. What cannot be made into a record is left out, and its name
is kept, so that a rule about the rest neither misses it nor stumbles over it.
"""

from __future__ import annotations

import re
from typing import Any

from attrs import define

from mmpack.multimethod.spec.expand import Expanded, expand_all, unroll
from mmpack.multimethod.spec.mistakes import Finding, Keys
from mmpack.multimethod.spec.records import MethodSpec, Spec, StepSpec
from mmpack.multimethod.spec.structure import structure

_NAMED = ("model", "methods", "targets", "dims", "state", "flow", "constants")
"""The sections whose entries stand on their own: one may be wrong and the rest right."""
_STAND_INS: dict[str, Any] = {"mmpack": 1, "model": {}, "targets": {}, "methods": {}}
"""For what must be given and was not; a rule asks `lost` before it believes them."""


@define
class Draft:
    """`broken` holds the keys of what was left out: ("methods", "attention") or ("model",)."""

    spec: Spec
    broken: frozenset[Keys]
    methods: dict[str, Expanded[MethodSpec]]
    steps: dict[str, list[Expanded[StepSpec]]]
    findings: list[Finding]

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
    if isinstance(model := data.get("model"), dict) and "factory" not in model:
        broken.add(("model", "factory"))
    if spec is None:
        spec, more = structure(_without(data, broken), Spec)
        assert spec is not None, more
    expansion = expand_all(spec)
    findings += expansion.findings
    broken |= {_entry(finding.keys, data) for finding in expansion.findings}
    steps: dict[str, list[Expanded[StepSpec]]] = {}
    for name, flow in spec.flow.items():
        steps[name], wrong = unroll(flow.steps, ("flow", name, "steps"))
        findings += wrong
        if wrong:
            broken.add(("flow", name))
    return Draft(spec, frozenset(broken), expansion.methods, steps, findings)


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
    whole = {**_STAND_INS, **rest}
    whole["model"] = {"factory": "", **whole["model"]}
    return whole


def _pattern(template: str) -> re.Pattern[str]:
    """Matches all names that a template could have become."""
    return re.compile(".+".join(re.escape(part) for part in re.split(r"\{[^{}]*\}", template)))
