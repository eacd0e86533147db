"""What a build writes into the manifest of what it found."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmpack.multimethod.driver import stages as driver
from mmpack.multimethod.link import open_program, read_manifest
from mmpack.multimethod.verify.checked import Checked, Verified

MODEL = """
class Model(nn.Module):
    def forward(self, x):
        return x + 1
"""
SPEC = """
dims: {chunk: 4}
methods:
  f: {module: ".", target: plain, inputs: {x: [chunk, 3]}, outputs: y}
flow:
  go: {cut: {x: chunk}, steps: [f], outputs: [y]}
"""


def test_what_is_infinite_is_none_in_the_manifest(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(name: str) -> Checked:
        return Checked(name, math.inf, math.inf, "output 'y'", sqnr=math.inf, least_sqnr=20.0)

    found = Verified({"f": endless("f")}, (endless("flow go"),))
    monkeypatch.setattr(driver, "verify_program", lambda *_: found)
    project.model(MODEL).spec(SPEC)
    project.build()
    with open_program(project.output) as file:
        manifest = read_manifest(file)
    assert manifest is not None
    told = {"error": None, "tolerance": None, "sqnr": None, "least_sqnr": 20.0}
    method = manifest.methods["f"]
    assert {name: getattr(method, name) for name in told} == told
    assert manifest.provenance["flows"] == {"go": told}
