"""What ran when: the tasks of a run that really took place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from attrs import frozen

from mmpack.multimethod.flow.tasks import Piece


@frozen
class Span:
    """One call, on which worker of which lane, and when, in seconds of `time.perf_counter`."""

    method: str
    step: int
    piece: Piece
    lane: str
    worker: int
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def measured(spans: Iterable[Span]) -> dict[str, list[float]]:
    """What calls took, as `work.Times` are: for each method and piece the mean of its calls."""
    calls: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for span in spans:
        calls[span.method][span.piece.number].append(span.seconds)
    return {
        method: [sum(own) / len(own) for _, own in sorted(by_piece.items())]
        for method, by_piece in calls.items()
    }
