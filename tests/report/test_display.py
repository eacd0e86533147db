"""The progress of a build: plain lines in a pipe, bars on a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import attrs
import pytest
from rich.console import Console

from mmpack.multimethod.progress import Status
from mmpack.multimethod.report.display import Display, status_line


def build(display: Display) -> None:
    """A small build as `Progress` is told of it."""
    with display:
        display.stage("compile", 3)
        display.status(STATUS)
        display.done("a", "cached")
        display.start("b")
        display.start("c")
        display.done("c")
        display.done("b", "failed")
        display.stage("link", 1)
        display.done("")


def test_in_a_pipe_every_finished_method_is_a_plain_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(file=io.StringIO())
    build(Display(console))
    lines = re.sub(r"\d+\.\d s", "# s", capsys.readouterr().out).splitlines()
    assert lines == [
        "compile 1/3 a (cached)",
        "compile 2/3 c (# s)",
        "compile 3/3 b (failed)",
    ]
    assert isinstance(console.file, io.StringIO) and console.file.getvalue() == ""


def test_on_a_terminal_stages_are_bars_and_methods_at_work_stand_beside_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    display = Display(console)
    with display:
        display.stage("compile", 2)
        display.start("one")
        display.start("two")
        display._bars.refresh()
        display.done("one")
        display._bars.refresh()
        display.done("two")
    assert isinstance(console.file, io.StringIO)
    frames = re.split(r"\r|\n|\x1b\[\S*?[A-Za-z]", console.file.getvalue())
    rows = [frame for frame in frames if frame.startswith("compile")]
    assert any("0/2" in row and row.rstrip().endswith("one, two") for row in rows)
    assert any("1/2" in row and row.rstrip().endswith("two") for row in rows)
    assert "2/2" in rows[-1] and "one" not in rows[-1] and "two" not in rows[-1]
    assert capsys.readouterr().out == ""


STATUS = Status(
    done=3, running=2, queued=9, cached=10, left=81.4, memory=1_320_000_000, peak=1_410_000_000
)


def test_on_a_terminal_a_line_says_where_compiling_stands() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    display = Display(console)
    with display:
        display.stage("compile", 24)
        display.status(STATUS)
        display._bars.refresh()
        display.stage("link", 1)
        display._bars.refresh()
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    line = "3 done, 2 running, 9 queued, 10 cached; 1:21 left; memory 1.3 GB, at most 1.4 GB"
    before, after = text.split("link", 1)
    assert line in before and line not in after


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"left": None}, "3 done, 2 running, 9 queued, 10 cached; memory 1.3 GB, at most 1.4 GB"),
        ({"left": 7325.0, "peak": 0}, "3 done, 2 running, 9 queued, 10 cached; 2:02:05 left"),
        ({"running": 0, "queued": 0, "peak": 0}, "3 done, 0 running, 0 queued, 10 cached"),
    ],
)
def test_what_is_not_known_is_not_told(changes: dict[str, Any], line: str) -> None:
    assert status_line(attrs.evolve(STATUS, **changes)) == line


@pytest.mark.parametrize("terminal", [True, False])
def test_reasons_are_lines(capsys: pytest.CaptureFixture[str], terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=40, color_system=None)
    with Display(console) as display:
        display.stage("compile", 2)
        display.explain("a", [])
        display.explain("b", ["attribute '[red]x' is 1, was 2", "dim 'n' is gone"])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue() if terminal else capsys.readouterr().out
    lines = [line.strip() for line in re.split(r"\r|\n|\x1b\[\S*?[A-Za-z]", text)]
    for line in (
        "why a: it is in the cache",
        "why b: it is compiled, since",
        "attribute '[red]x' is 1, was 2",
        "dim 'n' is gone",
    ):
        assert line in lines


def test_the_bars_of_all_stages_stand_in_one_column() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    display = Display(console)
    with display:
        display.stage("export", 2)
        display.stage("calibrate", 1)
        display.stage("compare heads", 3)
        display._bars.refresh()
    assert isinstance(console.file, io.StringIO)
    frames = re.split(r"\r|\n|\x1b\[\S*?[A-Za-z]", console.file.getvalue())
    rows = {
        name: [row for row in frames if row.startswith(name)][-1]
        for name in ("export", "calibrate", "compare heads")
    }
    assert len({row.index("0/") for row in rows.values()}) == 1
    assert all(row.startswith(f"{name} ") for name, row in rows.items())


def test_a_build_that_fails_leaves_the_terminal_usable() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(ValueError, match="broken"), Display(console) as display:
        display.stage("compile", 1)
        raise ValueError("broken")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
