"""Rules about precision: a word that the backend knows, calibrated if it must be, and judged by
the measure that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mmpack.multimethod.spec.mistakes import Finding, Findings, Keys
from mmpack.multimethod.spec.names import wrong_factory
from mmpack.multimethod.spec.partial import Draft
from mmpack.multimethod.spec.records import MethodSpec
from mmpack.multimethod.spec.structure import structure


def method_options(
    method: MethodSpec,
    keys: Keys,
    draft: Draft,
    backends: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[Any, list[Finding]]:
    """A method's options, its own precision in the place of its target's; None, and what is wrong
    with it, where the backend does not know that. options: those of the targets."""
    if method.precision is None:
        return options[method.target], []
    target = draft.spec.targets[method.target]
    record = backends[target.backend].Options
    here = (*keys, "precision")
    if not _has_precision(record):
        message = f"target {method.target!r} is {target.backend}, which has one precision only"
        return None, [Finding(here, message, at_key=True)]
    made, wrong = structure({**target.options, "precision": method.precision}, record)
    return made, [Finding(here, finding.message) for finding in wrong]


def check_precision(
    method: MethodSpec, keys: Keys, draft: Draft, backend: Any, options: Any
) -> Findings:
    """`options` are the method's own, as `method_options` gives them."""
    quantized = _has_precision(type(options)) and backend.sqnr(options) is not None
    if quantized and method.tolerance is not None:
        message = (
            f"{options.precision} is not held to a largest error but to a signal-to-quantization-"
            "noise ratio: `sqnr`, in dB"
        )
        yield Finding((*keys, "tolerance"), message, at_key=True)
    if method.sqnr is not None and not quantized:
        message = "only a quantized precision has a quantization noise; others have a `tolerance`"
        yield Finding((*keys, "sqnr"), message, at_key=True)
    if quantized and backend.calibrated(options):
        yield from _calibrated(method, keys, draft, options)


def check_calibration(reference: str | None, keys: Keys, folder: Path) -> Findings:
    if reference is not None and (message := wrong_factory(reference, folder)):
        yield Finding(keys, message)


def check_sqnr(value: float | None, keys: Keys) -> Findings:
    if value is not None and not 0 < value < math.inf:
        yield Finding(keys, f"expected a number of dB above 0, got {value}")


def _calibrated(method: MethodSpec, keys: Keys, draft: Draft, options: Any) -> Findings:
    """A precision whose ranges are found on examples needs some, and a way for them to get here."""
    if method.calibration is not None or draft.lost("calibration"):
        return
    word = options.precision
    where = keys if method.precision is not None else ("targets", method.target)
    if draft.spec.calibration is None:
        message = (
            f"{word} takes the ranges of values from example inputs; give a callable that yields "
            "inputs of the model: `calibration: file.py:callable`, at the top of the spec (or, "
            "with inputs of one method, at that method)"
        )
        yield Finding((*where, "precision"), message)
    elif method.wrapper is not None and not _in_a_flow(str(keys[1]), draft):
        message = (
            f"{word} needs example inputs, and a run of the model shows none of a wrapper's: run "
            "it in a flow, or give a callable that yields its inputs: `calibration: file.py:"
            "callable` here"
        )
        yield Finding((*keys, "wrapper"), message)


def _in_a_flow(method: str, draft: Draft) -> bool:
    # A flow that cannot be read might have run it.
    lost = any(keys[0] == "flow" for keys in draft.broken)
    steps = (step for flow in draft.flows.values() for step in flow.steps)
    return lost or any(step.item.run == method for step in steps)


def _has_precision(record: Any) -> bool:
    return attrs.has(record) and any(f.name == "precision" for f in attrs.fields(record))
