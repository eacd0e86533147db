"""Tables and sizes as people read them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from mmpack.multimethod import BuildReport, Dim, LinkReport, Signature, ValueSpec
from mmpack.multimethod.driver.records import MethodReport
from mmpack.multimethod.link import Manifest
from mmpack.multimethod.report.tables import (
    PIPE,
    Fitted,
    build_summary,
    build_table,
    checked_table,
    size,
    terminal,
)
from mmpack.multimethod.verify.checked import Checked, Verified

SIGNATURE = Signature(
    "layers.0.[odd]",
    (ValueSpec("hidden", "float32", (1, "n", 96)), ValueSpec("ids", "int64", ("n",))),
    (ValueSpec("out", "float32", (1, "n")),),
    {"n": Dim("n", 1, 64)},
)


SECONDS, MEMORY = {"model": 0.25, "compile": 12.0}, (812_000_000, 640_000_000)


def report(*, cached: bool, error: float | None) -> BuildReport:
    methods = (
        MethodReport(SIGNATURE, "cpu", 12, 9, 2_500_000, cached, error),
        MethodReport(Signature("empty", (), ()), "plain", 0, 0, 0, True, error),
    )
    link = LinkReport(Path("m.pte"), 3_000_000, 2_600_000, 2_500_000, {}, (), Manifest())
    flows = (Checked("flow prefill", 1.5e-6, 1e-4, "output 'logits' at 80 rows"),)
    return BuildReport(
        Path("m.pte"), methods, flows if error is not None else (), link, SECONDS, MEMORY
    )


def shown(table: Fitted, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_a_build_is_shown_method_by_method() -> None:
    assert shown(build_table(report(cached=False, error=2e-6))) == (
        "method          target  inputs                            delegated    size  max error\n"
        "layers.0.[odd]  cpu     hidden [1, n, 96], ids int64 [n]        75%  2.5 MB    2.0e-06\n"
        "empty           plain                                             –     0 B    2.0e-06"
    )


def test_the_share_delegated_is_that_of_the_build(project: Any) -> None:
    """XNNPACK takes three of four operators: no cumulative sum; portable none, of one."""
    project.model(
        """\
        class Model(nn.Module):
            def forward(self, x):
                return torch.abs(torch.relu(torch.cumsum(x, 1))) + x

            def sums(self, x):
                return torch.cumsum(x, 1)
        """
    ).spec(
        """\
        methods:
          most: {module: ".", target: cpu, inputs: {x: [2, 3]}}
          none: {module: ".", call: sums, target: plain, inputs: {x: [2, 3]}}
        """
    )
    rows = shown(build_table(project.build()), PIPE).splitlines()
    at = rows[0].index("delegated")
    assert [row[at : at + len("delegated")].strip() for row in rows[1:]] == ["75%", "0%"]


ALL = ("method", "target", "inputs", "delegated", "size", "max error")


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (1000, ALL),
        (85, ALL),
        (81, ALL),
        (80, ("method", "target", "delegated", "size", "max error")),
        (55, ("method", "target", "delegated", "size", "max error")),
        (54, ("method", "delegated", "size", "max error")),
        (46, ("method", "size", "max error")),
        (36, ("method", "size", "max error")),
    ],
)
def test_names_and_figures_stay_whole_where_the_terminal_is_narrow(
    width: int, titles: tuple[str, ...]
) -> None:
    text = shown(build_table(report(cached=False, error=None)), width)
    assert re.split(" {2,}", text.splitlines()[0]) == list(titles)
    (row,) = [line for line in text.splitlines() if line.startswith("layers.0.[odd] ")]
    figures = {"target": "cpu", "delegated": "75%", "size": "2.5 MB", "max error": "not verified"}
    cells = re.split(" {2,}", row)
    assert [c for c in cells if "hidden" not in c] == [
        "layers.0.[odd]",
        *(figures[title] for title in titles if title in figures),
    ]
    assert max(map(len, text.splitlines())) <= width


def test_the_summary_says_what_was_compiled_and_what_agrees() -> None:
    assert build_summary(report(cached=False, error=2e-6)) == (
        "dims: n=1..64\n"
        "m.pte: 2 methods (1 compiled, 1 from the cache), 3.0 MB, 100.0 kB saved by sharing\n"
        "model 0.2 s, compile 12.0 s; peak memory 812.0 MB, of a worker 640.0 MB\n"
        "flow prefill agrees with the model: max error 1.5e-06 (output 'logits' at 80 rows)"
    )


def test_the_summary_says_if_nothing_was_compiled() -> None:
    summary = build_summary(attrs.evolve(report(cached=True, error=None), memory=(812_000_000, 0)))
    assert "nothing was compiled: every method was in the cache" in summary
    assert summary.endswith("peak memory 812.0 MB")


def test_a_verification_is_shown_row_by_row() -> None:
    verified = Verified(
        {"a[0]": Checked("a[0]", 1.5e-6, 1e-4, "output 'x' at n=3")},
        (
            Checked("flow f", float("inf"), 1e-4, ""),
            Checked("flow g", None, 1e-4, "its reference is none"),
        ),
    )
    assert shown(checked_table(verified)) == (
        "checked  max error     allowed  at\n"
        "a[0]     1.5e-06       1e-04    output 'x' at n=3\n"
        "flow f   inf           1e-04\n"
        "flow g   not compared           its reference is none"
    )
    assert [line.rstrip() for line in shown(checked_table(verified), 30).splitlines()[::3]] == [
        "checked  max error     allowed",
        "flow g   not compared",
    ]


def test_what_is_piped_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    terminal().print(build_table(report(cached=False, error=2e-6)))
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split() == ["method", "target", "inputs", "delegated", "size", "max", "error"]


def test_a_flow_without_a_reference_is_not_passed_over_in_silence() -> None:
    flow = Checked("flow go", None, 1e-4, "its reference is none")
    summary = build_summary(attrs.evolve(report(cached=True, error=None), flows=(flow,)))
    assert summary.endswith("flow go was not compared with the model: its reference is none")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (999_999, "1.0 MB"),
        (5_000_000_000, "5.0 GB"),
        (5_000_000_000_000, "5000.0 GB"),
    ],
)
def test_sizes_are_in_the_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text


def test_precision_and_noise_have_columns_where_something_is_quantized() -> None:
    quantized = MethodReport(
        SIGNATURE, "cpu", 12, 9, 2_500_000, False, 0.1, "8a8w", quantized=True, sqnr=31.26
    )
    plain = MethodReport(Signature("f", (), ()), "plain", 0, 0, 0, True, 2e-6)
    link = LinkReport(Path("m.pte"), 3_000_000, 2_600_000, 2_500_000, {}, (), Manifest())
    flow = Checked(
        "flow prefill", 0.2, float("inf"), "output 'y' at 8 rows", sqnr=27.04, least_sqnr=20.0
    )
    made = BuildReport(Path("m.pte"), (quantized, plain), (flow,), link, SECONDS, MEMORY)
    text = shown(build_table(made), width=120).splitlines()
    assert text[0].split() == [
        "method", "target", "precision", "inputs", "delegated", "size", "max", "error", "SQNR",
    ]  # fmt: skip
    assert " 8a8w " in text[1] and text[1].endswith("1.0e-01  31.3 dB")
    assert " – " in text[2] and text[2].endswith("2.0e-06        –")
    assert build_summary(made).endswith(
        "flow prefill agrees with the model: SQNR 27.0 dB (output 'y' at 8 rows)"
    )
    (row,) = shown(checked_table(Verified({}, (flow,)))).splitlines()[1:]
    assert row.split()[2:6] == ["27.0", "dB", "20.0", "dB"]
