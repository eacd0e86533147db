"""Rules about `last`: a method for one row that stands for a step, where only a run's last row is
wanted.

What a spec says of it is checked here; `wrong_last` is asked again when a flow is planned, with
what only signatures tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from mmpack.multimethod.signature import Signature, ValueSpec
from mmpack.multimethod.spec.edges import Dims, wrong_row
from mmpack.multimethod.spec.flow_walk import POSITIONS, Walk
from mmpack.multimethod.spec.mistakes import Finding, Findings, Keys
from mmpack.multimethod.spec.records import MethodSpec, StepSpec

Values = Mapping[str, ValueSpec | None]


@frozen
class Ends:
    """A method's inputs and outputs by name, as far as they are known: None is what is not."""

    method: str
    inputs: Values | None
    outputs: Values | None

    @staticmethod
    def of(signature: Signature) -> Ends:
        inputs, outputs = (
            {value.name: value for value in values}
            for values in (signature.inputs, signature.outputs)
        )
        return Ends(signature.method, inputs, outputs)


def wrong_last(
    step: StepSpec, whole: Ends, row: Ends, caches: Collection[str], size: int | None, dims: Dims
) -> str | None:
    """Why `row` cannot be the `last` of a step that runs `whole` on pieces of `size`, or None."""
    if step.append:
        cache = next(iter(step.append.values()))
        return f"`last` is for steps that append nothing, and this one appends to {cache!r}"
    for name in step.with_ if whole.inputs is None else whole.inputs:
        source = step.with_.get(name, name)
        if source in caches:
            return f"`last` is for steps that read no cache, and this one reads {source!r}"
        if source == POSITIONS:
            return f"`last` is for steps that take no {POSITIONS}, and this one does"
    for kind, ours, theirs in (
        ("input", whole.inputs, row.inputs),
        ("output", whole.outputs, row.outputs),
    ):
        if ours is None or theirs is None:
            continue
        if ours.keys() != theirs.keys():
            return (
                f"{row.method} has the {kind}s {', '.join(theirs)}; expected those of "
                f"{whole.method}: {', '.join(ours)}"
            )
        for name, value in ours.items():
            other = theirs[name]
            if value is None or other is None or size is None:
                continue
            if wrong := wrong_row(value, other, size, dims):
                return f"{kind} {name!r} of {row.method}: {wrong}"
    return None


def behind(step: StepSpec, first: StepSpec) -> str:
    """What is wrong with a step without `last` that stands behind one that has it."""
    return (
        f"{step.run} stands behind {first.run}, which has `last: {first.last}`, so it must have a "
        "`last` too"
    )


def check_last(walk: Walk, steps: Sequence[StepSpec]) -> Findings:
    """All of a flow's steps."""
    first: StepSpec | None = None
    for number, step in enumerate(steps):
        keys: Keys = ("steps", walk.flow, number)
        if step.last is not None:
            first = first or step
            whole, row = (_ends(walk, name) for name in (step.run, step.last))
            wrong = wrong_last(step, whole, row, walk.appended, _size(walk), walk.dims)
            if wrong is not None:
                yield Finding((*keys, "last"), wrong)
        elif first is not None:
            yield Finding((*keys, "run"), behind(step, first))
            return  # once, for however many


def _size(walk: Walk) -> int | None:
    """Rows of a piece, where the spec's dim is right."""
    dim = walk.dims.get(next(iter(walk.cut.values()), ""))
    return dim.min if dim is not None and dim.fixed else None


def _ends(walk: Walk, name: str | None) -> Ends:
    method: MethodSpec | None = walk.method(name)
    if method is None:
        return Ends(name or "", None, None)
    inputs = outputs = None
    if isinstance(method.inputs, dict):
        inputs = {key: walk.value(key, given) for key, given in method.inputs.items()}
    if method.outputs:
        outputs = dict.fromkeys(method.outputs)
    return Ends(name or "", inputs, outputs)
