"""Which lane a method is on, and in how many threads those of a lane run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import load
from mmpack.multimethod.errors import CallError
from mmpack.multimethod.link import MethodRecord
from mmpack.multimethod.runtime.lanes import alone, lane_of
from mmpack.multimethod.signature import Signature

from ..link.programs import case


@pytest.mark.parametrize(
    ("backend", "lane", "delegates", "expected"),
    [
        ("xnnpack", "big", (), "big"),
        ("qnn", "", (), "npu"),
        ("xnnpack", "", ("XnnpackBackend",), "cpu"),
        ("QnnBackend, XnnpackBackend", "", ("XnnpackBackend", "QnnBackend"), "npu"),
        ("CoreMLBackend", "", ("CoreMLBackend",), "cpu"),
    ],
)
def test_a_lane_is_what_the_manifest_says_or_the_backend(
    backend: str, lane: str, delegates: tuple[str, ...], expected: str
) -> None:
    record = MethodRecord(Signature("m", (), ()), backend=backend, lane=lane)
    assert lane_of(record, delegates) == expected


def test_without_a_manifest_delegates_tell_thelane_of(tmp_path: Path) -> None:
    assert lane_of(None, ("QnnBackend",)) == "npu"
    assert lane_of(None, ("XnnpackBackend",)) == lane_of(None, ()) == "cpu"
    (tmp_path / "a.pte").write_bytes(case("mlp"))
    assert load(tmp_path / "a.pte").lanes == {"forward": "cpu"}


LANES = {"a": "npu", "b": "npu", "c": "cpu"}


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        (None, ""),
        (1, "abc"),
        ({}, ""),
        ({"npu": 1}, "ab"),
        ({"npu": None, "cpu": 1}, "c"),
        ({"npu": 1, "cpu": 1}, "abc"),
    ],
)
def test_threads_are_said_for_all_methods_or_for_lanes(threads: Any, expected: str) -> None:
    assert alone(Path("x.pte"), LANES, threads) == set(expected)


def test_a_lane_that_nothing_is_on_has_no_threads(two_lanes: Path, native_engine: object) -> None:
    with pytest.raises(CallError, match="threads: no method is on lane 'cpv'; did you mean"):
        load(two_lanes, engine="native", threads={"cpv": 1})


WIDE = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(512, 2048)
    def forward(self, x):
        return self.wide(x)
"""
WIDE_SPEC = """
mmpack: 1
model: {factory: model.py:make}
targets: {one: {backend: xnnpack, lane: one}, pool: {backend: xnnpack, lane: pool}}
dims: {n: 256}
methods:
  "{t}":
    each: {t: [one, pool]}
    module: "."
    target: "{t}"
    inputs: {x: [n, 512]}
"""


def test_methods_of_a_lane_run_in_the_thread_that_calls(project: Any) -> None:
    project.model(WIDE).spec(WIDE_SPEC, head="").build()
    program = load(project.output, engine="native", threads={"one": 1})
    assert program._engine.alone == {"one"}
    x = torch.randn(256, 512)
    one, pool = (program.run_method(name, x)[0] for name in ("one", "pool"))
    assert torch.equal(one, pool)
