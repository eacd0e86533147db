"""Tables for people: what a build made, how a verification went."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from mmpack.multimethod.errors import counted
from mmpack.multimethod.signature import ValueSpec

if TYPE_CHECKING:
    from mmpack.multimethod.driver.records import BuildReport
    from mmpack.multimethod.link import LinkReport
    from mmpack.multimethod.verify.checked import Checked, Verified


LEAST_TEXT = 24
"""Cells of a column of text: where it would get fewer, it is left out."""

GAP = 2
"""Cells between columns."""

PIPE = 1000
"""Width in cells of what is no terminal: lines there are read by programs, and stay whole."""


def terminal() -> Console:
    """Standard output."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE)


class Fitted:
    """A table that leaves out columns where there is no room for all of them: a name or figure
    is never broken, a text is where it has LEAST_TEXT cells.

    columns: title -> its cells. text: titles of those that may be broken. spare: titles of those
    that may be left out, the first one first. right: titles of those that are figures.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[str]],
        *,
        text: Collection[str] = (),
        spare: Sequence[str] = (),
        right: Collection[str] = (),
    ) -> None:
        self._columns, self._text, self._spare, self._right = columns, text, spare, right

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self._columns)
        for title in self._spare:
            if self._least(shown) > options.max_width:
                shown.remove(title)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in shown:
            table.add_column(
                title,
                justify="right" if title in self._right else "left",
                overflow="fold",
                min_width=self._width(title),
            )
        for cells in zip(*(self._columns[title] for title in shown), strict=True):
            table.add_row(*map(escape, cells))
        yield table

    def _least(self, titles: Sequence[str]) -> int:
        return sum(map(self._width, titles)) + GAP * (len(titles) - 1)

    def _width(self, title: str) -> int:
        """Cells that a column needs at least."""
        needed = max(cell_len(cell) for cell in (title, *self._columns[title]))
        return min(needed, LEAST_TEXT) if title in self._text else needed


def build_table(report: BuildReport) -> Fitted:
    """One row a method: target, inputs, share of operators delegated, size, max error; and, if
    some method is quantized, its precision and the ratio of signal to quantization noise."""
    methods = report.methods
    precision = {"precision": [m.precision or "–" for m in methods]}
    sqnr = {"SQNR": [_decibels(m.sqnr) for m in methods]}
    quantized = any(m.quantized for m in methods)
    return Fitted(
        {
            "method": [m.signature.method for m in methods],
            "target": [m.target for m in methods],
            **(precision if quantized else {}),
            "inputs": [", ".join(map(_input, m.signature.inputs)) for m in methods],
            "delegated": [
                f"{m.delegated / m.operators:.0%}" if m.operators else "–" for m in methods
            ],
            "size": [size(m.size) for m in methods],
            "max error": [
                f"{m.error:.1e}" if m.error is not None else "not verified" for m in methods
            ],
            **(sqnr if quantized else {}),
        },
        text=["inputs"],
        spare=["inputs", "target", "delegated"],
        right=["delegated", "size", "max error", "SQNR"],
    )


def _judged(checked: Checked) -> tuple[str, str]:
    """What was found and what is allowed."""
    if checked.error is None:
        return "not compared", ""
    if checked.least_sqnr is not None:
        return _decibels(checked.sqnr), f"{checked.least_sqnr:.1f} dB"
    return f"{checked.error:.1e}", f"{checked.tolerance:.0e}"


def agreement(error: float | None, sqnr: float | None) -> str:
    """How far a flow is from its reference: by the ratio where one was measured, for a quantized
    flow is judged by it, else by the error; "" where neither is known."""
    if sqnr is not None:
        return f"SQNR {_decibels(sqnr)}"
    return f"max error {error:.1e}" if error is not None else ""


def _decibels(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.1f} dB"


def _input(value: ValueSpec) -> str:
    """`hidden [1, chunk, 96]`; the dtype only where it is not float32."""
    dtype = "" if value.dtype == "float32" else f"{value.dtype} "
    return f"{value.name} {dtype}[{', '.join(map(str, value.shape or ()))}]"


def dims_line(report: BuildReport) -> str:
    """The dims that the table's inputs name, with their sizes."""
    dims = {name: dim for m in report.methods for name, dim in m.signature.dims.items()}
    return "dims: " + ", ".join(map(str, dims.values())) if dims else ""


def checked_table(verified: Verified) -> Fitted:
    """One row a method or flow: error, what is allowed, where the error was largest."""
    checks = (*verified.methods.values(), *verified.flows)
    rows = [(c.name, *_judged(c), c.where) for c in checks]
    titles = ("checked", "max error", "allowed", "at")
    columns = {title: [row[i] for row in rows] for i, title in enumerate(titles)}
    return Fitted(columns, text=["at"], spare=["at", "allowed"])


def beside(report: LinkReport) -> str:
    """What goes with a program's size, if its weights are in another file."""
    if report.data is None:
        return ""
    path, count = report.data
    return f"; weights in {path.name}, {size(count)}"


def build_summary(report: BuildReport) -> str:
    """Some lines under the table."""
    total, cached = len(report.methods), len(report.methods) - report.compiled
    if report.compiled == 0:
        compiled = "nothing was compiled: every method was in the cache"
    else:
        compiled = f"{report.compiled} compiled"
        compiled += f", {report.rebound} of them like another" if report.rebound else ""
        compiled += f", {cached} from the cache" if cached else ""
    dims = dims_line(report)
    lines = [dims] if dims else []
    lines += [
        f"{report.output}: {counted(total, 'method')} ({compiled}), {size(report.link.size)}, "
        f"{size(report.link.saved)} saved by sharing{beside(report.link)}",
    ]
    stages = ", ".join(f"{stage} {took:.1f} s" for stage, took in report.seconds.items())
    own, worker = report.memory
    of_worker = f", of a worker {size(worker)}" if worker else ""
    lines.append(f"{stages}; peak memory {size(own)}{of_worker}")
    lines += [method.note for method in report.methods if method.note is not None]
    lines += [
        f"{flow.name} was not compared with the model: its reference is none"
        if not flow.compared
        else f"{flow.name} agrees with the model: {agreement(flow.error, flow.sqnr)} ({flow.where})"
        for flow in report.flows
    ]
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes in the unit that fits: 1.5 MB is 1,500,000 bytes."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if round(value, 1) < 1000 or unit == "GB":
            return f"{value:.1f} {unit}"
    raise AssertionError
