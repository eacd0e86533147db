"""Rules about flows: every step's inputs are there when it runs, and can be what it takes.

Outputs have no shapes in a spec, so an edge between two methods is checked when both signatures
are known, by `agree` (`edges.py`), at build time. Here it is checked that the names meet, and
whatever shapes and dtypes stand on both ends in the spec.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmpack.multimethod.errors import nearest
from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.flow_walk import POSITIONS, Walk
from mmpack.multimethod.spec.input_rules import wrong_dim_name
from mmpack.multimethod.spec.last_rules import check_last
from mmpack.multimethod.spec.mistakes import Finding, Findings, Keys
from mmpack.multimethod.spec.partial import Draft
from mmpack.multimethod.spec.precision_rules import check_sqnr
from mmpack.multimethod.spec.records import FlowSpec, StepSpec


def check_flows(draft: Draft) -> Findings:
    for name, flow in draft.spec.flow.items():
        spoilt = draft.flows[name].spoilt
        for finding in _flow(name, flow, spoilt, draft):
            # Findings about steps name them by their number in the whole flow.
            if finding.keys[0] == "steps" or not spoilt.intersection(finding.keys[2:3]):
                yield finding


def _flow(name: str, flow: FlowSpec, spoilt: frozenset[str], draft: Draft) -> Findings:
    keys: Keys = ("flow", name)
    if not name:
        yield Finding(keys, "expected a name, got the empty text", at_key=True)
    if not (flow.reference == "none" or flow.reference.isidentifier()):
        message = f"expected a Python method of the model, or none; got {flow.reference!r}"
        yield Finding((*keys, "reference"), message)
    yield from _cut(flow, keys, draft)
    yield from check_sqnr(flow.sqnr, (*keys, "sqnr"))
    if not flow.steps:
        yield Finding((*keys, "steps"), "expected at least one step")
    if not flow.outputs:
        yield Finding((*keys, "outputs"), "expected at least one output")
    wrong_steps = list(_forms(flow.steps, (*keys, "steps")))
    yield from wrong_steps
    walk = Walk(draft, name, flow.cut)
    if wrong_steps or spoilt & {"cut", "steps", "each"}:
        for number, step in enumerate(draft.flows[name].steps):
            yield from walk.known(number, step.item)
        return
    for number, step in enumerate(draft.flows[name].steps):
        yield from walk.step(number, step.item)
    yield from check_last(walk, [step.item for step in draft.flows[name].steps])
    yield from _outputs(flow, keys, walk)
    if not walk.unseen:
        yield from _unread(flow, keys, walk)


def _cut(flow: FlowSpec, keys: Keys, draft: Draft) -> Findings:
    if not flow.cut:
        yield Finding((*keys, "cut"), "expected at least one input to cut, like {tokens: chunk}")
    sizes: dict[int, Dim] = {}
    for name, dim_name in flow.cut.items():
        here = (*keys, "cut", name)
        if name == POSITIONS:
            yield Finding(here, f"{POSITIONS!r} is what the flow itself provides", at_key=True)
        if message := wrong_dim_name(dim_name, draft):
            yield Finding(here, message)
        elif (dim := draft.spec.dims.get(dim_name)) is None:
            continue  # a dim that could not be read
        elif not dim.fixed:
            yield Finding(here, f"pieces are all of one size, and {dim} is not fixed")
        else:
            sizes[dim.min] = dim
    if len(sizes) > 1:
        dims = " and ".join(str(dim) for dim in sizes.values())
        yield Finding((*keys, "cut"), f"all inputs are cut in pieces of one size, got {dims}")


def _forms(steps: tuple[StepSpec, ...], keys: Keys) -> Iterator[Finding]:
    """A step runs a method, or repeats other steps: one of the two."""
    for number, step in enumerate(steps):
        here = (*keys, number)
        if step.run is not None and step.steps:
            yield Finding(here, "expected `run` or `steps`, got both")
        elif step.run is None and not step.steps:
            yield Finding(here, "expected `run`, or `each` and `steps`")
        elif step.steps and not step.each:
            yield Finding(here, "`steps` stand only beside `each`")
        for name, given in (
            ("with", step.with_),
            ("gives", step.gives),
            ("append", step.append),
            ("last", step.last),
        ):
            if given and step.run is None:
                message = f"`{name}` stands only beside `run`"
                yield Finding((*here, name), message, at_key=True)
        yield from _forms(step.steps, (*here, "steps"))


def _outputs(flow: FlowSpec, keys: Keys, walk: Walk) -> Findings:
    met: set[str] = set()
    for number, output in enumerate(flow.outputs):
        here = (*keys, "outputs", number)
        if output in met:
            yield Finding(here, f"{output!r} is named twice")
        elif output in walk.caches and output not in walk.values:
            yield Finding(here, f"{output!r} is a cache; expected what a step gives")
        elif not walk.gives(output):
            yield Finding(here, f"no step gives {output!r}{nearest(output, walk.values)}")
        met.add(output)


def _unread(flow: FlowSpec, keys: Keys, walk: Walk) -> Findings:
    for name in flow.cut:
        if name not in walk.cut_readers:
            yield Finding((*keys, "cut", name), f"no step takes {name!r}", at_key=True)
    for cache, place in walk.caches.items():
        if cache not in walk.cache_readers:
            yield Finding(place, f"the cache {cache!r} is appended to and never read")
