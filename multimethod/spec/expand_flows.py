"""`each` of flows and of their steps, unrolled.

    "{name}": {each: {name: [prefill, decode], n: {cycle: [chunk, one]}}, cut: {tokens: "{n}"}, …}

becomes the flows `prefill`, whose pieces have the size `chunk`, and `decode`, whose have `one`.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import frozen

from mmpack.multimethod.spec.expand import (
    Expanded,
    Origin,
    Values,
    combinations,
    count,
    fill,
    unknown_symbols,
    wrong_name,
)
from mmpack.multimethod.spec.mistakes import Finding, Keys
from mmpack.multimethod.spec.records import FlowSpec, StepSpec
from mmpack.multimethod.spec.structure import MANY
from mmpack.multimethod.spec.templates import fill_text
from mmpack.multimethod.spec.wrong import Wrong


@frozen
class ExpandedFlow:
    """A flow without templates, besides those of the steps as they stand in the file. `steps`:
    the same in the order in which they run. `spoilt`: fields that are defaults, since what the
    file has there is wrong; and `each` if the steps cannot be unrolled."""

    flow: Expanded[FlowSpec]
    steps: list[Expanded[StepSpec]]
    spoilt: frozenset[str]


def expand_flows(
    flows: Mapping[str, FlowSpec], spoilt: Mapping[str, frozenset[str]]
) -> tuple[dict[str, ExpandedFlow], list[Finding]]:
    """All flows by their full names, and what is wrong with the templates. `spoilt`: of an entry,
    the fields that are defaults already."""
    made: dict[str, ExpandedFlow] = {}
    findings: list[Finding] = []
    for template, flow in flows.items():
        lost = spoilt.get(template, frozenset())
        wrong, own = _flows(template, flow, lost, made)
        findings += wrong
        made |= own
    return made, findings


def _flows(
    template: str, flow: FlowSpec, spoilt: frozenset[str], taken: Mapping[str, object]
) -> tuple[list[Finding], dict[str, ExpandedFlow]]:
    """The flows that one entry makes. If it cannot be known which, it is one of the entry's name,
    without what its templates become."""
    keys: Keys = ("flow", template)
    bare = attrs.evolve(flow, each={}, steps=())
    if "each" in spoilt:
        return [], {template: _left(flow, keys, spoilt)}
    wrong = wrong_name(template, flow.each, keys, "flow")
    wrong += unknown_symbols(bare, flow.each, keys)
    made: dict[str, ExpandedFlow] = {}
    for values in [] if wrong else combinations(flow.each):
        name = fill_text(template, values)
        if name in made or name in taken:
            wrong = [Finding(keys, f"more than one flow would be {name!r}", at_key=True)]
            break
        try:
            filled = attrs.evolve(fill(bare, values), steps=flow.steps)
        except Wrong as error:
            wrong = [Finding(keys, str(error), at_key=True)]
            break
        steps, more = unroll(flow.steps, (*keys, "steps"), values, count(flow.each))
        lost = spoilt | {"each"} if more else spoilt
        made[name] = ExpandedFlow(Expanded(filled, Origin(keys, values)), steps, lost)
        if more:  # the same again for every other value
            return more, made
    if made and not wrong:
        return [], made
    any_values = {symbol: values[0] for symbol, values in flow.each.items()}
    wrong += unroll(flow.steps, (*keys, "steps"), any_values)[1]
    return wrong, {template: _left(flow, keys, spoilt)}


def _left(flow: FlowSpec, keys: Keys, spoilt: frozenset[str]) -> ExpandedFlow:
    """What is left of an entry of which it cannot be known what its templates become."""
    bare = attrs.evolve(flow, each={}, steps=())
    fields = {a.name: getattr(bare, a.name) for a in attrs.fields(FlowSpec)}
    unfilled = {field for field, value in fields.items() if unknown_symbols(value, {}, ())}
    left = Expanded(attrs.evolve(flow, each={}), Origin(keys, {}))
    return ExpandedFlow(left, [], spoilt | unfilled | {"each"})


def unroll(
    steps: tuple[StepSpec, ...], keys: Keys, outer: Values, times: int = 1
) -> tuple[list[Expanded[StepSpec]], list[Finding]]:
    """Steps without `each`, in the order in which they run.

    `keys` lead to the steps; `outer` is what the flow and the groups around them fill in, `times`
    how often those repeat them.
    """
    flat: list[Expanded[StepSpec]] = []
    findings: list[Finding] = []
    for number, step in enumerate(steps):
        here = (*keys, number)
        known = {**outer, **dict.fromkeys(step.each, "")}
        again = "is already given by an outer `each`"
        wrong = [
            Finding((*here, "each", symbol), f"{{{symbol}}} {again}", at_key=True)
            for symbol in step.each
            if symbol in outer
        ]
        wrong += unknown_symbols(attrs.evolve(step, each={}, steps=()), known, here)
        wrong += unknown_symbols(step.each, outer, (*here, "each"))
        made = times * count(step.each)
        if made > MANY:
            wrong.append(Finding((*here, "each"), f"this makes {made} steps, more than {MANY}"))
        findings += wrong
        for each in [] if wrong else combinations(fill(step.each, outer)):
            values = {**outer, **each}
            try:
                alone = fill(attrs.evolve(step, each={}, steps=()), values)
            except Wrong as error:
                findings.append(Finding(here, str(error)))
                break
            if step.run is not None:
                flat.append(Expanded(alone, Origin(here, values)))
            inner, more = unroll(step.steps, (*here, "steps"), values, made)
            flat += inner
            findings += more
            if more:  # the same again for every other value
                break
    return flat, findings
