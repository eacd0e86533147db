"""Schedules of a program's flow, and a run of it that is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import load
from mmpack.multimethod.driver.pipeline import compare_schedules, read_times, trace_flow
from mmpack.multimethod.errors import FlowError


def test_the_flow_with_the_largest_pieces_is_compared_by_default(two_lanes: Path) -> None:
    found = compare_schedules(two_lanes, pieces=3)
    assert (found.flow, found.pieces, len(found.work)) == ("prefill", 3, 6)
    assert found.workers == {"npu": 1, "cpu": 1} and not found.timed
    assert [s.policy for s in found.schedules] == [
        "serial", "in-order", "critical-path", "breadth-first", "greedy",
        "forward-backward", "look-ahead",
    ]  # fmt: skip
    # front 0-1, 1-2, 2-3 on one lane; back 1-2, 2-3, 3-4 on the other. In order, the same. The
    # published rule has `front` begin with the last piece, after which nothing else is ready.
    makespans = {s.policy: s.makespan for s in found.schedules}
    assert makespans == {
        "serial": 6, "in-order": 4, "critical-path": 4, "breadth-first": 4, "greedy": 6,
        "forward-backward": 4, "look-ahead": 4,
    }  # fmt: skip
    assert (found.bound, found.optimum, found.chosen) == (3, 4, "critical-path")


def test_a_flow_on_one_lane(two_lanes: Path) -> None:
    found = compare_schedules(two_lanes, "decode", lanes={"npu": 3, "cpu": 2})
    assert found.workers == {"cpu": 2} and found.pieces == 8
    # A reader is shown 4 rows, of which the later ones must still be zeros. So 4 rows are a chain
    # of f b f b f b f, at the end of which the first `back` of the next 4 goes before the last one
    # of these: 7, then b f b f b f b. `front` of the fifth row ran meanwhile.
    assert found.bound == found.optimum == 14


def test_there_are_as_many_pieces_as_there_is_room_for(two_lanes: Path) -> None:
    assert compare_schedules(two_lanes).pieces == 6


@pytest.mark.parametrize(
    ("lanes", "ratio", "work"),
    [
        (None, (2, 1), {"npu": 2, "cpu": 1}),
        ({"cpu": 1, "npu": 1}, (2, 1), {"npu": 1, "cpu": 2}),
        ({"cpu": 2}, (3, 1), {"npu": 1, "cpu": 3}),
    ],
)
def test_a_ratio_is_of_the_lanes_work(
    two_lanes: Path, lanes: Any, ratio: Any, work: dict[str, float]
) -> None:
    found = compare_schedules(two_lanes, pieces=4, lanes=lanes, ratio=ratio)
    assert found.work.per_lane == pytest.approx(work)


def test_measured_times_come_from_a_file(two_lanes: Path, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"front.chunk": 0.5, "back.chunk": [1, 2]}))
    found = compare_schedules(two_lanes, pieces=3, times=path)
    assert found.timed and found.work.seconds == (0.5, 1, 0.5, 2, 0.5, 2)
    assert found.work.per_lane == {"npu": 1.5, "cpu": 5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no times can be read from it: "),
        ("[]", "expected a JSON object, method: seconds"),
        ("{}", "expected a JSON object, method: seconds"),
        ('{"front.chnk": 1}', "the program has no method 'front.chnk'; did you mean 'front.chunk'"),
        ('{"front.chunk": "1"}', "front.chunk: expected seconds, or a list of them, got '1'"),
        ('{"front.chunk": []}', "front.chunk: expected seconds, or a list of them, got []"),
        ('{"front.chunk": [1, -1]}', "front.chunk: expected seconds"),
        ('{"front.chunk": NaN}', "front.chunk: expected seconds"),
        ('{"front.chunk": true}', "front.chunk: expected seconds"),
    ],
)
def test_a_file_of_times_that_is_none(
    two_lanes: Path, tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(FlowError) as raised:
        read_times(path, load(two_lanes))
    assert str(raised.value).startswith(f"{path}: ") and says in str(raised.value)
    with pytest.raises(FlowError, match="no times can be read"):
        read_times(tmp_path / "none.json", load(two_lanes))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"flow": "prefil"}, "no flow 'prefil'; did you mean 'prefill'"),
        ({"pieces": 7}, "0 rows so far and 28 more do not fit into cache 'keys'"),
        ({"ratio": (1, 2, 3)}, "a ratio of 3 numbers, and the flow is on 2 lanes: npu, cpu"),
        ({"lanes": {"gpu": 1}}, "no method is on lane 'gpu'; did you mean"),
    ],
)
def test_what_cannot_be_compared(two_lanes: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(FlowError) as raised:
        compare_schedules(two_lanes, **options)
    assert says in str(raised.value)


def test_a_flow_must_be_named_where_it_is_not_clear(foreign: Path) -> None:
    with pytest.raises(FlowError, match="name the flow that is meant; flows: none"):
        compare_schedules(foreign)


@pytest.mark.parametrize("schedule", ["serial", "in-order", "out-of-order"])
def test_a_run_is_traced(two_lanes: Path, schedule: Any) -> None:
    traced = trace_flow(two_lanes, "prefill", 10, schedule=schedule)
    assert (traced.flow, traced.schedule, traced.rows) == ("prefill", schedule, 10)
    assert len(traced.spans) == 6 and traced.workers == {"npu": 1, "cpu": 1}
    assert set(traced.times) == {"front.chunk", "back.chunk"}
    work = {lane: sum(s.seconds for s in traced.spans if s.lane == lane) for lane in ("npu", "cpu")}
    assert max(work.values()) <= traced.bound <= traced.seconds
    for lane, bubble in traced.bubbles.items():
        assert bubble == pytest.approx(1 - work[lane] / traced.seconds)


def test_random_input_is_within_what_its_readers_take(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmpack.multimethod.flow.execute import Flow

    model = """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 3)
        def forward(self, t):
            return self.table(t)
    """
    spec = """
    dims: {chunk: 4}
    methods:
      f: {module: ".", target: plain, inputs: {t: {shape: [chunk], dtype: int64, range: 2..6}}}
    flow: {go: {cut: {t: chunk}, steps: [f], outputs: [out]}}
    """
    project.model(model).spec(spec).build()
    given: list[torch.Tensor] = []
    run = Flow.run

    def noting(self: Flow, **options: Any) -> Any:
        given.append(options["t"])
        return run(self, **options)

    monkeypatch.setattr(Flow, "run", noting)
    trace_flow(project.output, "go", 300)
    assert given[0].shape == (300,) and torch.equal(given[0], given[1])
    assert given[0].unique().tolist() == [2, 3, 4, 5, 6]
