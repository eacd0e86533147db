"""Tables for people: what a build made, how a verification went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mmpack.multimethod.signature import ValueSpec

if TYPE_CHECKING:
    from mmpack.multimethod.build import BuildReport
    from mmpack.multimethod.verify import Checked


def build_table(report: BuildReport) -> Table:
    """One row a method: target, inputs, share of operators delegated, size, max error; and, if
    some method is quantized, its precision and the ratio of signal to quantization noise."""
    quantized = any(method.quantized for method in report.methods)
    table = _table("method", "target", *(["precision"] if quantized else []), "inputs")
    for title in ("delegated", "size", "max error", *(["SQNR"] if quantized else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for method in report.methods:
        inputs = ", ".join(_input(value) for value in method.signature.inputs)
        share = f"{method.delegated / method.operators:.0%}" if method.operators else "–"
        table.add_row(
            escape(method.signature.method),
            method.target,
            *([method.precision or "–"] if quantized else []),
            escape(inputs),
            share,
            size(method.size),
            f"{method.error:.1e}" if method.error is not None else "not verified",
            *([_decibels(method.sqnr)] if quantized else []),
        )
    return table


def _agreement(flow: Checked) -> str:
    if flow.sqnr is not None:
        return f"SQNR {_decibels(flow.sqnr)}"
    return f"max error {flow.error:.1e}"


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


def checked_table(checked: Iterable[Checked]) -> Table:
    """One row a method or flow: error, what is allowed, where the error was largest."""
    table = _table("checked", "max error", "allowed", "at")
    for row in checked:
        error = "not compared" if row.error is None else f"{row.error:.1e}"
        allowed = "" if row.error is None else f"{row.tolerance:.0e}"
        if row.least_sqnr is not None:
            error, allowed = _decibels(row.sqnr), f"{row.least_sqnr:.1f} dB"
        table.add_row(escape(row.name), error, allowed, escape(row.where))
    return table


def build_summary(report: BuildReport) -> str:
    """Two or three lines under the table."""
    total, cached = len(report.methods), len(report.methods) - report.compiled
    if report.compiled == 0:
        compiled = "nothing was compiled: every method was in the cache"
    else:
        compiled = f"{report.compiled} compiled" + (f", {cached} from the cache" if cached else "")
    dims = dims_line(report)
    lines = [dims] if dims else []
    lines += [
        f"{report.output}: {total} methods ({compiled}), {size(report.link.size)}, "
        f"{size(report.link.saved)} saved by sharing",
    ]
    lines += [
        f"{flow.name} was not compared with the model: its reference is none"
        if not flow.compared
        else f"{flow.name} agrees with the model: {_agreement(flow)} ({flow.where})"
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


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
