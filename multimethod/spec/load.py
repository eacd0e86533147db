"""A spec's file -> its records, checked by every rule that needs no model.

file = load_spec("spec.yaml")                  # raises one SpecError with all mistakes
file.spec.targets, file.methods, file.steps["prefill"]
raise SpecError([file.mistake(("methods", "layers.0.qkv_proj", "module"), "no such module")])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from mmpack.multimethod.spec.expand import Origin, Values
from mmpack.multimethod.spec.mistakes import Finding, Keys, Mistake
from mmpack.multimethod.spec.partial import Draft, draft
from mmpack.multimethod.spec.records import MethodSpec, Spec, StepSpec
from mmpack.multimethod.spec.rules import check
from mmpack.multimethod.spec.source import Source, read

Backends = Mapping[str, Any]
"""Names of backends -> their classes, as in `mmpack.multimethod.targets.BACKENDS`."""


@frozen
class SpecFile:
    """A spec that was read, and the way back from each thing in it to its line.

    methods: every method by its full name, without templates.
    steps: for every flow its steps in the order in which they run, without templates.
    options: for every target its backend's own record of options.
    """

    path: Path
    source: Source
    spec: Spec
    methods: dict[str, MethodSpec]
    steps: dict[str, tuple[StepSpec, ...]]
    options: dict[str, Any]
    origins: dict[Keys, Origin]

    @property
    def folder(self) -> Path:
        """What the paths in the spec are relative to."""
        return self.path.parent

    def mistake(self, keys: Keys, message: str, *, at_key: bool = False) -> Mistake:
        """A mistake at the place that these keys lead to.

        The keys are those of the file or of what was expanded from it: a method's full name, as
        in ("methods", "layers.0.qkv_proj", "target"), and for the steps of a flow
        ("steps", "prefill", 3, "run"), the number counting the expanded steps.
        """
        return _place(self.source, self.origins, Finding(keys, message, at_key))[0]

    def locate(self, keys: Keys, *, at_key: bool = False) -> tuple[int, int]:
        """Line and column, from 1, of the place that these keys lead to."""
        mistake = self.mistake(keys, "", at_key=at_key)
        return mistake.line, mistake.column


def load_spec(path: str | Path, *, backends: Backends | None = None) -> SpecFile:
    """Reads and checks a spec. Raises one `SpecError` that holds all mistakes."""
    source, mistakes = read(path)
    if backends is None:
        # A backend's file knows the records of this room, so this cannot stand at the top.
        from mmpack.multimethod.targets import BACKENDS

        backends = BACKENDS
    made = draft(source.data)
    origins = _origins(made)
    options: dict[str, Any] = {}
    reported: dict[tuple[int, int, Keys], Values] = {}
    for finding in made.findings:
        mistakes.add(source.find(finding))
    for finding in check(made, Path(path).parent, backends, options):
        mistake, origin = _place(source, origins, finding)
        place = (mistake.line, mistake.column, origin.keys)
        # What is wrong for one value of `each` is mostly wrong for all: once a place is enough.
        if reported.setdefault(place, origin.values) == origin.values:
            mistakes.add(mistake)
    mistakes.check()
    return SpecFile(
        Path(path),
        source,
        made.spec,
        {name: expanded.item for name, expanded in made.methods.items()},
        {name: tuple(step.item for step in flow.steps) for name, flow in made.flows.items()},
        options,
        origins,
    )


def _origins(made: Draft) -> dict[Keys, Origin]:
    """From where expanded things are named to where they stand in the file."""
    origins: dict[Keys, Origin] = {
        **{("methods", left.name): left.origin for left in made.remains},
        **{("methods", name): expanded.origin for name, expanded in made.methods.items()},
    }
    for name, flow in made.flows.items():
        origins[("flow", name)] = flow.flow.origin
        origins |= {("steps", name, n): step.origin for n, step in enumerate(flow.steps)}
    return origins


def _place(
    source: Source, origins: Mapping[Keys, Origin], finding: Finding
) -> tuple[Mistake, Origin]:
    for length in (2, 3):
        if origin := origins.get(finding.keys[:length]):
            keys = origin.keys + finding.keys[length:]
            moved = Finding(keys, finding.message, finding.at_key)
            return source.find(moved, origin.values), origin
    return source.find(finding), Origin((), {})
