"""The rules that a spec must obey as a whole. Each yields what it finds wrong.

What a record can be is said by its types (`records.py`); here is what must hold between records,
and between the spec and the files beside it. Rules about methods and flows have files of their
own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpack.multimethod.errors import ModelError, nearest
from mmpack.multimethod.huggingface.folder import CONFIG, missing_package, read_folder
from mmpack.multimethod.signature import Dim, wrong_data_name, wrong_file_name
from mmpack.multimethod.spec.flow_rules import check_flows
from mmpack.multimethod.spec.input_rules import LARGEST, check_inputs
from mmpack.multimethod.spec.method_rules import check_methods
from mmpack.multimethod.spec.mistakes import Finding, Findings, unknown
from mmpack.multimethod.spec.names import wrong_factory, wrong_file, wrong_weights
from mmpack.multimethod.spec.partial import Draft
from mmpack.multimethod.spec.precision_rules import check_calibration
from mmpack.multimethod.spec.records import ModelSpec
from mmpack.multimethod.spec.structure import structure

VERSION = 1
"""The version of the spec's own format: what `mmpack:` at its top says."""

PLACES = ("inside", "separate")
"""What `data` may be, other than the name of a file."""

_LANE = re.compile(r"[\w.-]+")


def check(
    draft: Draft, folder: Path, backends: Mapping[str, Any], options: dict[str, Any]
) -> Findings:
    """All rules. `folder` holds the spec; `options` is filled with each target's record."""
    yield from _version(draft)
    yield from _model(draft, folder)
    yield from _sample(draft, folder)
    yield from check_calibration(draft.spec.calibration, ("calibration",), folder)
    yield from _dims(draft)
    yield from _targets(draft, backends, options)
    yield from check_methods(draft, folder, backends, options)
    yield from _state(draft)
    yield from _constants(draft)
    yield from _files(draft, folder)
    yield from _data(draft)
    yield from check_flows(draft)


def _version(draft: Draft) -> Findings:
    if draft.spec.mmpack != VERSION:
        message = f"expected {VERSION}, the version of the spec that this mmpack reads; got "
        yield Finding(("mmpack",), f"{message}{draft.spec.mmpack}")


def _model(draft: Draft, folder: Path) -> Findings:
    model = draft.spec.model
    if model.factory is not None and (message := wrong_factory(model.factory, folder)):
        yield Finding(("model", "factory"), message)
    if model.huggingface is not None:
        yield from _huggingface(model, folder)
    elif model.factory is None and not any(
        draft.lost("model", key) for key in ("factory", "huggingface")
    ):
        message = "expected `factory`, or `huggingface` with a folder that holds config.json"
        yield Finding(("model",), message, at_key=True)
    elif model.seed:
        message = "`seed` is for the random weights of a config.json that `huggingface` names"
        yield Finding(("model", "seed"), message, at_key=True)
    for name in model.args:
        if not name.isidentifier():
            yield Finding(("model", "args", name), "no argument can be called that", at_key=True)
    if model.weights is not None and (message := wrong_weights(model.weights, folder)):
        yield Finding(("model", "weights"), message)


def _huggingface(model: ModelSpec, folder: Path) -> Findings:
    keys = ("model", "huggingface")
    if model.factory is not None:
        message = "`factory` and `huggingface` exclude each other: the model is of one of them"
        yield Finding(keys, message, at_key=True)
    for key, given in (("args", model.args), ("weights", model.weights)):
        if given and model.factory is None:
            message = f"`{key}` goes with a `factory`; a Hugging Face folder says all by itself"
            yield Finding(("model", key), message, at_key=True)
    if not model.huggingface:
        yield Finding(keys, "expected the name of a folder, got the empty text")
        return
    try:
        found = read_folder(folder / model.huggingface)
    except ModelError as error:
        yield Finding(keys, str(error))
        return
    if model.seed and found.tensors is not None:
        message = f"the weights are in the folder; to have random ones, name its {CONFIG}"
        yield Finding(("model", "seed"), message, at_key=True)
    if missing := missing_package():
        yield Finding(keys, missing)


def _sample(draft: Draft, folder: Path) -> Findings:
    sample = draft.spec.sample
    if isinstance(sample, str):
        if message := wrong_factory(sample, folder):
            yield Finding(("sample",), message)
    elif sample is not None:
        yield from check_inputs(sample, ("sample",), draft)


def _dims(draft: Draft) -> Findings:
    for name, dim in draft.spec.dims.items():
        keys = ("dims", name)
        if not name.isidentifier():
            yield Finding(keys, f"expected a name like kv_len, got {name!r}", at_key=True)
        for end, message in _wrong_dim(dim):
            yield Finding((*keys, end), message)


def _wrong_dim(dim: Dim) -> Iterator[tuple[str, str]]:
    """Why no size could be such a dim. What may only follow from something else is not told."""
    wrong = {}
    if dim.min < 1:
        wrong["min"] = f"a size is at least 1, got {dim.min}"
    if dim.max > LARGEST:
        wrong["max"] = f"a size is at most {LARGEST}, got {dim.max}"
    if dim.step < 1:
        wrong["step"] = f"a step is at least 1, got {dim.step}"
    if not wrong and dim.max < dim.min:
        wrong["max"] = f"the maximum, {dim.max}, is below the minimum, {dim.min}"
    if not wrong:
        ends = {"min": dim.min, "max": dim.max}
        odd = {end: size for end, size in ends.items() if size % dim.step}
        wrong = {
            end: f"{size} is not a multiple of the step, {dim.step}" for end, size in odd.items()
        }
    yield from wrong.items()


def _targets(draft: Draft, backends: Mapping[str, Any], options: dict[str, Any]) -> Findings:
    for name, target in draft.spec.targets.items():
        if target.lane is not None and not _LANE.fullmatch(target.lane):
            message = f"expected a name like npu, got {target.lane!r}"
            yield Finding(("targets", name, "lane"), message)
        if target.backend not in backends:
            message = unknown("backend", target.backend, backends)
            yield Finding(("targets", name, "backend"), message)
            continue
        made, wrong = structure(target.options, backends[target.backend].Options)
        for finding in wrong:
            yield finding.under("targets", name)
        if not wrong:
            options[name] = made


def _state(draft: Draft) -> Findings:
    state = draft.spec.state
    met: dict[str, str] = {}
    for kind, patterns in (("shared", state.shared), ("private", state.private)):
        for number, pattern in enumerate(patterns):
            keys = ("state", kind, number)
            if not pattern:
                yield Finding(keys, "expected the name of a buffer, got the empty text")
            elif pattern in met:
                where = "both shared and private" if met[pattern] != kind else "named twice"
                yield Finding(keys, f"{pattern!r} is {where}")
            met[pattern] = kind


def _constants(draft: Draft) -> Findings:
    for name, value in draft.spec.constants.items():
        keys = ("constants", name)
        if not name.isidentifier():
            yield Finding(keys, f"expected a name like max_len, got {name!r}", at_key=True)
        if type(value) is int and not -(2**63) <= value < 2**63:
            yield Finding(keys, f"{value} does not fit into an int64")
        if type(value) is float and not math.isfinite(value):
            yield Finding(keys, f"expected a finite number, got {value}")


def _data(draft: Draft) -> Findings:
    data = draft.spec.data
    if data not in PLACES and wrong_data_name(data) is not None:
        message = f"expected inside, separate or a plain name that ends in .ptd; got {data!r}"
        yield Finding(("data",), message + nearest(data, PLACES))


def _files(draft: Draft, folder: Path) -> Findings:
    for name, path in draft.spec.files.items():
        if message := wrong_file_name(name):
            yield Finding(("files", name), message, at_key=True)
        if message := wrong_file(path, folder):
            yield Finding(("files", name), message)
