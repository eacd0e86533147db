"""Rules about methods, after `each` has been expanded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpack.multimethod.signature import Dim, wrong_method_name
from mmpack.multimethod.spec.input_rules import (
    check_inputs,
    wrong_dim_name,
    wrong_name,
    wrong_names,
)
from mmpack.multimethod.spec.mistakes import Finding, Findings, Keys, unknown
from mmpack.multimethod.spec.names import wrong_wrapper
from mmpack.multimethod.spec.partial import Draft
from mmpack.multimethod.spec.precision_rules import (
    check_calibration,
    check_precision,
    check_sqnr,
    method_options,
)
from mmpack.multimethod.spec.records import MethodSpec
from mmpack.multimethod.spec.templates import symbols


def check_methods(
    draft: Draft, folder: Path, backends: Mapping[str, Any], options: Mapping[str, Any]
) -> Findings:
    if not draft.spec.methods and not draft.broken:
        yield Finding(("methods",), "expected at least one method")
    for name, expanded in draft.methods.items():
        keys: Keys = ("methods", name)
        method = expanded.item
        yield from _name(name, keys, draft)
        wrong = [*_alone(method, keys, draft, folder), *_together(method, keys)]
        yield from wrong
        sound = not any(finding.keys[2] in ("inputs", "axes") for finding in wrong)
        yield from _of_target(method, keys, draft, backends, options, sound=sound)
    for left in draft.remains:
        keys = ("methods", left.name)
        if not symbols(left.name):
            yield from _name(left.name, keys, draft)
        for finding in _alone(left.method, keys, draft, folder):
            if finding.keys[2] not in left.spoilt:
                yield finding
        if left.method.target in options and "precision" not in left.spoilt:
            yield from method_options(left.method, keys, draft, backends, options)[1]


def _alone(method: MethodSpec, keys: Keys, draft: Draft, folder: Path) -> Findings:
    """What is wrong with one field, whatever stands in the others."""
    if method.wrapper is not None and (message := wrong_wrapper(method.wrapper, folder)):
        yield Finding((*keys, "wrapper"), message)
    if method.call is not None and (message := wrong_name(method.call)):
        yield Finding((*keys, "call"), message)
    for name in method.args:
        if message := wrong_name(name):
            yield Finding((*keys, "args", name), message, at_key=True)
    yield from _inputs(method, keys, draft)
    yield from _axes(method, keys, draft)
    yield from wrong_names(method.outputs, (*keys, "outputs"))
    if method.tolerance is not None and not 0 < method.tolerance < math.inf:
        message = f"expected a number above 0, got {method.tolerance}"
        yield Finding((*keys, "tolerance"), message)
    yield from check_calibration(method.calibration, (*keys, "calibration"), folder)
    yield from check_sqnr(method.sqnr, (*keys, "sqnr"))
    targets = draft.spec.targets
    if method.target not in targets and not draft.lost("targets", method.target):
        yield Finding((*keys, "target"), unknown("target", method.target, targets))


def _together(method: MethodSpec, keys: Keys) -> Findings:
    """What is wrong with two fields beside each other."""
    if method.wrapper is not None and method.call is not None:
        message = "a wrapper has its own forward, so `call` and `wrapper` exclude each other"
        yield Finding((*keys, "call"), message)
    if method.wrapper is None and method.args:
        message = "`args` are a wrapper's arguments, and there is no `wrapper`"
        yield Finding((*keys, "args"), message, at_key=True)
    if method.axes and method.inputs != "captured":
        message = "`axes` are for captured inputs; here the dims stand in the shapes"
        yield Finding((*keys, "axes"), message, at_key=True)


def _of_target(
    method: MethodSpec,
    keys: Keys,
    draft: Draft,
    backends: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    sound: bool,
) -> Findings:
    """What its target has against a method. sound: its inputs are right as such."""
    if method.target not in options:
        return
    backend = backends[draft.spec.targets[method.target].backend]
    own, unknown_word = method_options(method, keys, draft, backends, options)
    yield from unknown_word
    if own is not None:
        yield from check_precision(method, keys, draft, backend, own)
    if own is not None and sound:
        yield from _refused(method, keys, draft, backend, own)


def _name(name: str, keys: Keys, draft: Draft) -> Findings:
    if message := wrong_method_name(name):
        yield Finding(keys, message, at_key=True)
    if name in draft.spec.constants:
        yield Finding(keys, f"a constant is called {name!r} too", at_key=True)


def _inputs(method: MethodSpec, keys: Keys, draft: Draft) -> Findings:
    if not isinstance(method.inputs, str):
        yield from check_inputs(method.inputs, (*keys, "inputs"), draft)
    elif draft.spec.sample is None and not draft.lost("sample"):
        message = "inputs are captured from a run of the model, which needs a `sample`"
        yield Finding((*keys, "inputs"), message)


def _axes(method: MethodSpec, keys: Keys, draft: Draft) -> Findings:
    for name, axes in method.axes.items():
        for axis, dim in axes.items():
            here = (*keys, "axes", name, axis)
            if axis < 0:
                yield Finding(here, f"expected an axis from 0, got {axis}", at_key=True)
            if wrong := wrong_dim_name(dim, draft):
                yield Finding(here, wrong)


def _refused(
    method: MethodSpec,
    keys: Keys,
    draft: Draft,
    backend: Any,
    options: Any,
) -> Findings:
    """Whether the backend can take the method, as far as it can tell before it is compiled."""
    if (dims := _dims(method, draft)) is None:
        return
    inputs = method.inputs if isinstance(method.inputs, dict) else {}
    if refusal := backend.refuses(options, method, inputs, dims):
        yield Finding((*keys, *refusal.at), refusal.message)


def _dims(method: MethodSpec, draft: Draft) -> dict[str, Dim] | None:
    """The dims that a method's inputs name; None if one of them could not be read."""
    given = method.inputs.values() if isinstance(method.inputs, dict) else ()
    names = [size for value in given for size in value.shape if isinstance(size, str)]
    names += [dim for axes in method.axes.values() for dim in axes.values()]
    dims = draft.spec.dims
    return {name: dims[name] for name in names} if all(name in dims for name in names) else None
