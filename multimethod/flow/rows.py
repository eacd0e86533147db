"""Where the rows are in what steps with `last` read and give, by their methods' signatures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from mmpack.multimethod.errors import FlowError, nearest
from mmpack.multimethod.signature import Signature, ValueSpec
from mmpack.multimethod.spec.edges import Dims, row_axis
from mmpack.multimethod.spec.last_rules import Ends, behind, wrong_last
from mmpack.multimethod.spec.records import StepSpec


def settle_rows(
    flow: str,
    steps: Sequence[StepSpec],
    signatures: Mapping[str, Signature],
    cuts: Mapping[str, int],
    caches: Collection[str],
    size: int,
    dims: Dims,
) -> tuple[dict[str, int], dict[str, int]]:
    """For each name that steps with `last` read of what others, or the caller, give: the axis of
    its rows. The same for each name that they give. Both are empty where a piece is a row.

    cuts: the axis of each of the caller's inputs. Raises FlowError, naming flow and step, for a
    method that cannot be a step's `last`.
    """
    first = next((n for n, step in enumerate(steps) if step.last is not None), len(steps))
    others = _given(steps[:first], signatures)
    axes = {name: axis for name, axis in cuts.items() if name not in others}
    read: dict[str, int] = {}
    given: dict[str, int] = {}
    for number, step in enumerate(steps[first:], first):
        if step.last is None:
            raise _error(flow, behind(step, steps[first]), number, "run")
        if step.last not in signatures:
            hint = nearest(step.last, signatures)
            raise _error(flow, f"there is no method {step.last!r}{hint}", number)
        whole, row = signatures[step.run or ""], signatures[step.last]
        if wrong := wrong_last(step, Ends.of(whole), Ends.of(row), caches, size, dims):
            raise _error(flow, wrong, number)
        if size == 1:
            continue
        for name, axis in _axes(whole.inputs, row.inputs, size, dims):
            source = step.with_.get(name, name)
            if axes.setdefault(source, axis) != axis:
                message = f"the rows of {source!r} are along axis {axes[source]}"
                raise _error(flow, f"{message}, {step.last} takes one along axis {axis}", number)
            if source not in given:
                read[source] = axis
        for name, axis in _axes(whole.outputs, row.outputs, size, dims):
            target = step.gives.get(name, name)
            axes[target] = given[target] = axis
    return read, given


def _given(steps: Iterable[StepSpec], signatures: Mapping[str, Signature]) -> set[str]:
    """Names in the flow of what steps give."""
    return {
        step.gives.get(value.name, value.name)
        for step in steps
        for value in signatures[step.run or ""].outputs
        if value.name not in step.append
    }


def _axes(
    whole: Iterable[ValueSpec], row: Iterable[ValueSpec], size: int, dims: Dims
) -> Iterable[tuple[str, int]]:
    ones = {value.name: value for value in row}
    for value in whole:
        axis = row_axis(value, ones[value.name], size, dims)
        assert axis is not None
        yield value.name, axis


def _error(flow: str, message: str, number: int, key: str = "last") -> FlowError:
    return FlowError(f"flow {flow!r}: {message}", ("steps", flow, number, key))
