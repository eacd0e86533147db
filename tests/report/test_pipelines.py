"""What is told of schedules and runs, on a screen and in files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from rich.console import Console

from mmpack.cli import main
from mmpack.multimethod.driver.pipeline import Traced, compare_schedules
from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.flow.tasks import Piece
from mmpack.multimethod.flow.trace import Span, measured
from mmpack.multimethod.report.pipelines import (
    comparison_choice,
    comparison_table,
    comparison_title,
    traced_summary,
)
from mmpack.multimethod.report.trace_files import chrome_trace, gantt, write_traced
from mmpack.multimethod.runtime import engines
from mmpack.multimethod.runtime.engine import Engine

PIECES = Piece(0, 0, 4), Piece(1, 4, 2)
SPANS = (
    Span("<front>", 0, PIECES[0], "npu", 0, 10.000, 10.002),
    Span("back", 1, PIECES[0], "cpu", 1, 10.002, 10.005),
    Span("<front>", 0, PIECES[1], "npu", 0, 10.002, 10.003),
    Span("back", 1, PIECES[1], "cpu", 0, 10.004, 10.008),
)
TRACED = Traced(
    flow="prefill",
    schedule="out-of-order",
    rows=6,
    spans=SPANS,
    workers={"npu": 1, "cpu": 2},
    seconds=0.008,
    bound=0.0064,
    bubbles={"npu": 0.625, "cpu": 0.5625},
    times=measured(SPANS),
)


def mmpack(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def shown(table: object) -> list[list[str]]:
    stream = io.StringIO()
    Console(file=stream, width=200).print(table)
    return [line.split() for line in stream.getvalue().splitlines()]


def test_policies_are_compared_in_a_table(two_lanes: Path, tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    times.write_text('{"front.chunk": 0.001, "back.chunk": 0.003}')
    found = compare_schedules(two_lanes, pieces=2, times=times)
    assert comparison_title(found) == (
        "flow prefill: 2 pieces, 4 calls; npu (1 worker) 2.00 ms, cpu (1 worker) 6.00 ms"
    )
    ms = ["ms"]
    assert shown(comparison_table(found)) == [
        ["policy", "makespan", "over", "bound", "npu", "idle", "cpu", "idle"],
        ["serial", "8.00", *ms, "33.3%", "75.0%", "25.0%"],
        *([name, "7.00", *ms, "16.7%", "71.4%", "14.3%"] for name in (
            "in-order", "critical-path", "breadth-first", "greedy", "forward-backward",
            "look-ahead")),
        ["optimum", "7.00", *ms, "16.7%"],
        ["lower", "bound", "6.00", *ms],
    ]  # fmt: skip
    assert comparison_choice(found) == "out-of-order takes critical-path"


def test_without_times_numbers_have_no_unit(two_lanes: Path) -> None:
    found = compare_schedules(two_lanes, pieces=2, ratio=(2, 1))
    assert "npu (1 worker) 2, cpu (1 worker) 1" in comparison_title(found)
    assert shown(comparison_table(found))[1] == ["serial", "3", "50.0%", "33.3%", "66.7%"]


def test_a_run_is_summed_up() -> None:
    assert traced_summary(TRACED) == (
        "flow prefill, 6 rows, out-of-order: 8.00 ms in 4 calls, 1.25 times the lower bound; "
        "idle: npu 62.5%, cpu 56.2%"
    )


def test_trace_events_are_those_of_the_format() -> None:
    events = json.loads(json.dumps(chrome_trace(TRACED)))["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {1: "npu", 2: "cpu 0", 3: "cpu 1"}
    calls = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["tid"], round(e["ts"]), round(e["dur"])) for e in calls] == [
        ("<front>", 1, 0, 2000),
        ("back", 3, 2000, 3000),
        ("<front>", 1, 2000, 1000),
        ("back", 2, 4000, 4000),
    ]
    assert calls[3]["args"] == {"step": 1, "piece": 1, "rows": 2}
    assert all({"name", "ph", "pid", "tid", "ts", "dur"} <= e.keys() for e in calls)


def test_the_picture_has_a_bar_for_each_call() -> None:
    root = ElementTree.fromstring(gantt(TRACED))
    space = "{http://www.w3.org/2000/svg}"
    bars = [r for r in root.iter(f"{space}rect") if r.find(f"{space}title") is not None]
    at = [tuple(float(bar.attrib[key]) for key in ("x", "y", "width")) for bar in bars]
    whole = 1200 - 70 - 8
    assert [x for x, _, _ in at] == pytest.approx(
        [70, 70 + whole / 4, 70 + whole / 4, 70 + whole / 2], abs=0.02
    )
    assert [width for _, _, width in at] == pytest.approx(
        [whole / 4, whole * 3 / 8, whole / 8, whole / 2], abs=0.02
    )
    assert [y for _, y, _ in at] == [34, 114, 34, 74]
    assert len({bar.attrib["fill"] for bar in bars}) == 2
    titles = [bar.find(f"{space}title").text for bar in bars]  # type: ignore[union-attr]
    assert titles[0] == "<front>, piece 0 (rows 0 to 3): 2.000 ms"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert texts[1:] == ["npu", "cpu 0", "cpu 1"]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_traced(TRACED, tmp_path / "none" / "trace.json", None, None)


def test_a_run_in_so_many_threads(
    two_lanes: Path, native_engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind --threads reaches `load`, which has its words for what is wrong."""
    monkeypatch.setattr(engines, "_automatic", lambda: native_engine)
    done = mmpack("trace", two_lanes, "prefill", "--rows", 9, "--threads", "npu=1")
    assert done.exit_code == 0, done.output
    done = mmpack("trace", two_lanes, "prefill", "--rows", 9, "--threads", "npx=1")
    assert done.exit_code != 0 and "threads: no method is on lane 'npx'" in done.stderr


def test_the_commands_go_together(two_lanes: Path, tmp_path: Path) -> None:
    trace, picture, times = (tmp_path / name for name in ("t.json", "t.svg", "times.json"))
    done = mmpack("trace", two_lanes, "prefill", "--rows", 9, "--lanes", "npu=1,cpu=2",
                  "-o", trace, "--gantt", picture, "--times", times)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("flow prefill, 9 rows, out-of-order: ")
    assert sum(e["ph"] == "X" for e in json.loads(trace.read_text())["traceEvents"]) == 6
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert {len(seconds) for seconds in json.loads(times.read_text()).values()} == {3}
    done = mmpack("schedule", two_lanes, "--pieces", 3, "--times", times)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("flow prefill: 3 pieces, 6 calls; npu (1 worker) ")
    assert lines[1].split()[0] == "policy" and lines[-1].startswith("out-of-order takes ")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--lanes", "npu"), "'npu': expected NAME=N,…"),
        (("--lanes", "npu=1,npu=2"), "'npu' was given twice"),
        (("--lanes", "npu=x"), "'npu=x': 'x' is not a whole number"),
        (("--ratio", "2:x"), "'2:x': expected numbers above 0, as in 2:1"),
        (("--ratio", "0:1"), "expected numbers above 0"),
        (("--ratio", "1:1", "--times", "x.json"), "expected one of --times and --ratio"),
        (("--pieces", "0"), "0 is not in the range"),
    ],
)
def test_a_wrong_command_line_is_told(two_lanes: Path, args: tuple[str, ...], says: str) -> None:
    done = mmpack("schedule", two_lanes, *args)
    assert done.exit_code == 2 and says in done.stderr


def test_a_trace_does_not_take_the_programs_place(two_lanes: Path) -> None:
    done = mmpack("trace", two_lanes, "prefill", "--rows", 4, "-o", two_lanes)
    assert done.exit_code == 11 and "is an input of this command" in done.stderr
