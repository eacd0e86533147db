"""A traced run as files: for Perfetto or chrome://tracing, as a Gantt picture, as times.

Source of the first: "Trace Event Format", the JSON object format with complete events (`X`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from colorsys import hls_to_rgb
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from mmpack.multimethod.errors import counted
from mmpack.multimethod.scratch import replacing

if TYPE_CHECKING:
    from mmpack.multimethod.driver.pipeline import Traced

_WIDTH, _LEFT, _ROW, _GAP, _TOP = 1200, 70, 34, 6, 34
"""Pixels of the picture, of what stands left of the bars, of a bar, between bars, above them."""


def write_traced(
    traced: Traced, trace: Path | None, picture: Path | None, times: Path | None
) -> None:
    """Write what is wanted. Raises OutputError for what cannot be written."""
    if trace is not None:
        _write(trace, _json(chrome_trace(traced)))
    if picture is not None:
        _write(picture, gantt(traced))
    if times is not None:
        _write(times, _json(traced.times))


def chrome_trace(traced: Traced) -> dict[str, Any]:
    """Trace events, times in microseconds, a thread for each worker of each lane."""
    rows, begin = _rows(traced), _begin(traced)
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"flow {traced.flow}"}}
    ]
    for (lane, worker), row in rows.items():
        name = {"name": _title(traced, lane, worker)}
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": name})
    events += (
        {
            "ph": "X",
            "name": span.method,
            "cat": span.lane,
            "pid": 1,
            "tid": rows[span.lane, span.worker],
            "ts": (span.begin - begin) * 1e6,
            "dur": span.seconds * 1e6,
            "args": {"step": span.step, "piece": span.piece.number, "rows": span.piece.rows},
        }
        for span in sorted(traced.spans, key=lambda span: span.begin)
    )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def gantt(traced: Traced) -> str:
    """An SVG: a line for each worker, a bar for each call, coloured by its piece."""
    rows = _rows(traced)
    height = _TOP + len(rows) * (_ROW + _GAP) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="20">{escape(_headline(traced))}</text>',
    ]
    for (lane, worker), row in rows.items():
        y = _TOP + (row - 1) * (_ROW + _GAP)
        title = escape(_title(traced, lane, worker))
        parts.append(f'<text x="8" y="{y + _ROW / 2 + 4}">{title}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{_WIDTH - _LEFT - 8}" height="{_ROW}" '
            'fill="#eeeeee"/>'
        )
    return "\n".join([*parts, *_bars(traced, rows), "</svg>"]) + "\n"


def _bars(traced: Traced, rows: dict[tuple[str, int], int]) -> Iterator[str]:
    begin, scale = _begin(traced), (_WIDTH - _LEFT - 8) / max(traced.seconds, 1e-9)
    pieces = 1 + max(span.piece.number for span in traced.spans)
    for span in traced.spans:
        x, width = _LEFT + (span.begin - begin) * scale, span.seconds * scale
        y = _TOP + (rows[span.lane, span.worker] - 1) * (_ROW + _GAP)
        rgb = hls_to_rgb(span.piece.number / pieces, 0.6, 0.65)
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
        told = f"{span.method}, {span.piece}: {span.seconds * 1e3:.3f} ms"
        yield (
            f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW}" '
            f'fill="{colour}"><title>{escape(told)}</title></rect>'
        )


def _headline(traced: Traced) -> str:
    return (
        f"flow {traced.flow}, {counted(traced.rows, 'row')}, {traced.schedule}: "
        f"{traced.seconds * 1e3:.2f} ms; a colour for each piece"
    )


def _rows(traced: Traced) -> dict[tuple[str, int], int]:
    """Workers by lane and number -> their lines, from 1."""
    workers = [(lane, n) for lane, count in traced.workers.items() for n in range(count)]
    return {worker: row for row, worker in enumerate(workers, 1)}


def _title(traced: Traced, lane: str, worker: int) -> str:
    return lane if traced.workers[lane] == 1 else f"{lane} {worker}"


def _begin(traced: Traced) -> float:
    return min(span.begin for span in traced.spans)


def _json(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"


def _write(path: Path, text: str) -> None:
    data = text.encode()
    with replacing(path, len(data)) as fd, open(fd, "wb", closefd=False) as file:
        file.write(data)
