"""Flows in manifests that somebody else wrote, or damaged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod import load
from mmpack.multimethod.errors import FlowError, FormatError
from mmpack.multimethod.link import Manifest, link

from ..link.programs import case

FLOW = {
    "cut": {"x": "chunk"},
    "steps": [{"run": "forward", "with_": {"in_0": "x"}, "gives": {}, "append": {}, "steps": []}],
    "outputs": ["out_0"],
    "reference": "none",
}


def places(value: Any) -> Iterator[list[Any]]:
    """The ways to every part of plain data, itself included."""
    yield []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inside if isinstance(value, dict | list) else ():
        yield from ([key, *way] for way in places(part))


def changed(way: list[Any], part: Any) -> Any:
    if not way:
        return part
    made = place = copy.deepcopy(FLOW)
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = part
    return made


@pytest.mark.parametrize("way", list(places(FLOW)), ids=str)
def test_what_is_no_flow(way: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.pte").write_bytes(case("mlp"))
    path = tmp_path / "x.pte"
    for odd in (None, 3, "x", [], [3], [None], {}, {"run": 3}, {"x": []}, [[]], True, 1.5):
        link([tmp_path / "a.pte"], path, manifest=Manifest(flow={"go": changed(way, odd)}))
        with pytest.raises((FormatError, FlowError)) as error:
            _ = load(path).flows
        told = str(error.value)
        assert "flow 'go'" in told and "\n" not in told
        if not way:
            assert isinstance(error.value, FormatError) and told.startswith(f"{path}: manifest: ")


def test_what_is_no_method_for_the_last_row(tmp_path: Path) -> None:
    (tmp_path / "a.pte").write_bytes(case("mlp"))
    path = tmp_path / "x.pte"
    for odd in (3, "x", "", [], {}, ["forward"], True, "forward"):
        flow = changed(["steps", 0, "last"], odd)
        link([tmp_path / "a.pte"], path, manifest=Manifest(flow={"go": flow}))
        with pytest.raises((FormatError, FlowError), match="flow 'go'"):
            _ = load(path).flows


def test_the_place_of_a_mistake_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.pte").write_bytes(case("mlp"))
    path = tmp_path / "x.pte"
    for way, odd, said in (
        (["steps", 0, "with_"], 3, "$.steps[0].with_"),
        (["steps", 0, "run"], None, "step 0 is not one call of one method"),
        (["steps", 0, "steps"], [{"run": "forward"}], "step 0 is not one call of one method"),
        (["cut"], 3, "$.cut"),
    ):
        link([tmp_path / "a.pte"], path, manifest=Manifest(flow={"go": changed(way, odd)}))
        with pytest.raises(FormatError) as error:
            _ = load(path).flows
        assert said in str(error.value)


def test_the_lanes_of_a_spec_travel_in_the_program(project: Any, tmp_path: Path) -> None:
    project.model("class Model(nn.Module):\n    def forward(self, x):\n        return x + 1\n")
    project.spec(
        """
        targets: {one: {backend: portable, lane: npu}, two: {backend: portable}}
        methods:
          f: {module: ".", target: one, inputs: {x: [4]}}
          g: {module: ".", target: two, inputs: {x: [4]}}
        """,
        head="mmpack: 1\nmodel: {factory: model.py:make}\n",
    )
    assert project.program().lanes == {"f": "npu", "g": "cpu"}
    link([project.output], tmp_path / "x.pte", rename={"g": "h"})
    assert load(tmp_path / "x.pte").lanes == {"f": "npu", "h": "cpu"}
