"""What a file says of its methods, as far as running them goes."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from mmpack.multimethod.link import Manifest, PteFile, foreign_signature
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.link.schema import ExecutionPlan, Tensor
from mmpack.multimethod.link.spans import Spans
from mmpack.multimethod.link.state_find import STATE, planned
from mmpack.multimethod.link.state_tensors import state_tensors
from mmpack.multimethod.link.xnnpack_blob import BACKEND
from mmpack.multimethod.link.xnnpack_weights import packed_weights
from mmpack.multimethod.signature import Signature

_CHANNELS_LAST = ((0, 2, 3, 1), (0, 2, 3, 4, 1))


@frozen
class Facts:
    """One method. backends: those that it has delegates for; operators: those that it calls, as in
    "aten::add.out"; stateful: it uses memory that outlives a call; state: where, as (memory, first
    byte, byte after the last); keeps: it has state, there or elsewhere; channels_last: positions
    of inputs whose memory is laid out that way, which the runtime takes for granted; weights: those
    that XNNPACK packs, see `packed_weights`; ranges: input -> least and largest integer it was
    tested with."""

    signature: Signature
    backends: tuple[str, ...]
    operators: tuple[str, ...]
    stateful: bool
    state: tuple[tuple[int, int, int], ...]
    keeps: bool
    channels_last: frozenset[int]
    weights: Mapping[str, frozenset[str]]
    ranges: Mapping[str, tuple[int, int]]


def read_facts(file: PteFile, manifest: Manifest | None) -> dict[str, Facts]:
    """By method, in the program's order. A signature that the manifest does not have is derived
    from the plan."""
    facts = {}
    for plan in file.plans:
        name = plan.name or ""
        sizes = plan.non_const_buffer_sizes or ()
        stateful = any(sizes[STATE:])
        record = manifest.methods.get(name) if manifest is not None else None
        facts[name] = Facts(
            signature=record.signature if record is not None else foreign_signature(file, name),
            backends=tuple(dict.fromkeys(d.id or "" for d in plan.delegates or ())),
            operators=tuple(
                f"{o.name}.{o.overload}" if o.overload else o.name or ""
                for o in plan.operators or ()
            ),
            stateful=stateful,
            state=tuple(
                (memory, *ends)
                for memory in range(STATE, len(sizes))
                for ends in Spans(planned(plan, memory)).ends
            ),
            keeps=stateful or bool(state_tensors(plan)),
            channels_last=_channels_last(plan),
            weights=_weights(file, plan),
            ranges=record.extra.get("ranges", {}) if record is not None else {},
        )
    return facts


def _weights(file: PteFile, plan: ExecutionPlan) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for delegate, extent in zip(plan.delegates or (), delegate_extents(file, plan), strict=True):
        if delegate.id == BACKEND:
            for key, uses in packed_weights(file, extent).items():
                found[key] = found.get(key, frozenset()) | uses
    return found


def _channels_last(plan: ExecutionPlan) -> frozenset[int]:
    values = [(plan.values or [])[index].val for index in plan.inputs or ()]
    return frozenset(
        position
        for position, value in enumerate(values)
        if isinstance(value, Tensor) and tuple(value.dim_order or ()) in _CHANNELS_LAST
    )
