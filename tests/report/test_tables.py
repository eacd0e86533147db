"""Tables and sizes as people read them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from mmpack.multimethod import BuildReport, Dim, LinkReport, Signature, ValueSpec
from mmpack.multimethod.build import MethodReport
from mmpack.multimethod.link import Manifest
from mmpack.multimethod.report.tables import build_summary, build_table, checked_table, size
from mmpack.multimethod.verify import Checked

SIGNATURE = Signature(
    "layers.0.[odd]",
    (ValueSpec("hidden", "float32", (1, "n", 96)), ValueSpec("ids", "int64", ("n",))),
    (ValueSpec("out", "float32", (1, "n")),),
    {"n": Dim("n", 1, 64)},
)


def report(*, cached: bool, error: float | None) -> BuildReport:
    methods = (
        MethodReport(SIGNATURE, "cpu", 12, 9, 2_500_000, cached, error),
        MethodReport(Signature("empty", (), ()), "plain", 0, 0, 0, True, error),
    )
    link = LinkReport(Path("m.pte"), 3_000_000, 2_600_000, 2_500_000, {}, (), Manifest())
    flows = (Checked("flow prefill", 1.5e-6, 1e-4, "output 'logits' at 80 rows"),)
    return BuildReport(Path("m.pte"), methods, flows if error is not None else (), link)


def shown(table: Table, width: int = 100) -> str:
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


def test_figures_stay_whole_where_the_terminal_is_narrow() -> None:
    text = shown(build_table(report(cached=False, error=None)), width=60)
    assert "not verified" in text and "2.5 MB" in text and "75%" in text
    assert "".join(line[:7].strip() for line in text.splitlines()).startswith("method")


def test_the_summary_says_what_was_compiled_and_what_agrees() -> None:
    assert build_summary(report(cached=False, error=2e-6)) == (
        "dims: n=1..64\n"
        "m.pte: 2 methods (1 compiled, 1 from the cache), 3.0 MB, 100.0 kB saved by sharing\n"
        "flow prefill agrees with the model: max error 1.5e-06 (output 'logits' at 80 rows)"
    )


def test_the_summary_says_if_nothing_was_compiled() -> None:
    summary = build_summary(report(cached=True, error=None))
    assert "nothing was compiled: every method was in the cache" in summary


def test_a_verification_is_shown_row_by_row() -> None:
    rows = [
        Checked("a[0]", 1.5e-6, 1e-4, "output 'x' at n=3"),
        Checked("flow f", float("inf"), 1e-4, ""),
    ]
    assert shown(checked_table(rows)) == (
        "checked  max error  allowed  at\n"
        "a[0]     1.5e-06    1e-04    output 'x' at n=3\n"
        "flow f   inf        1e-04"
    )


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
    flow = Checked("flow prefill", 0.2, float("inf"), "output 'y' at 8 rows", 27.04, 20.0)
    made = BuildReport(Path("m.pte"), (quantized, plain), (flow,), link)
    text = shown(build_table(made), width=120).splitlines()
    assert text[0].split() == [
        "method", "target", "precision", "inputs", "delegated", "size", "max", "error", "SQNR",
    ]  # fmt: skip
    assert " 8a8w " in text[1] and text[1].endswith("1.0e-01  31.3 dB")
    assert " – " in text[2] and text[2].endswith("2.0e-06        –")
    assert build_summary(made).endswith(
        "flow prefill agrees with the model: SQNR 27.0 dB (output 'y' at 8 rows)"
    )
    (row,) = shown(checked_table([flow])).splitlines()[1:]
    assert row.split()[2:6] == ["27.0", "dB", "20.0", "dB"]
