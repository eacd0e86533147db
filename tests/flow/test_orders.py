"""What a flow's orders are planned by."""

from __future__ import annotations

from mmpack.multimethod.flow.orders import Orders
from mmpack.multimethod.flow.tasks import Piece
from mmpack.multimethod.flow.trace import Span


def spans(pieces: int, seconds: float) -> list[Span]:
    return [
        Span("f", 0, Piece(number, number, 1), "cpu", 0, number, number + seconds)
        for number in range(pieces)
    ]


def test_the_second_run_of_most_pieces_counts() -> None:
    orders = Orders()
    orders.note(spans(2, 9.0))  # cold
    assert orders.times == {"f": [9.0, 9.0]}
    orders.note(spans(1, 0.5))
    assert orders.times == {"f": [9.0, 9.0]}
    orders.note(spans(2, 2.0))
    orders.note(spans(2, 3.0))
    assert orders.times == {"f": [2.0, 2.0]}
    orders.note(spans(3, 7.0))
    orders.note(spans(2, 1.0))
    assert orders.times == {"f": [7.0, 7.0, 7.0]}
    orders.note(spans(3, 4.0))
    assert orders.times == {"f": [4.0, 4.0, 4.0]}


def test_what_was_set_stays() -> None:
    for first in ([], spans(2, 9.0)):
        orders = Orders()
        if first:
            orders.note(first)
        orders.times = {"f": 1.0}
        for pieces in (2, 2, 5):
            orders.note(spans(pieces, 3.0))
        assert orders.times == {"f": 1.0}


def test_a_run_of_which_nothing_was_wanted_tells_nothing() -> None:
    orders = Orders()
    orders.note(spans(1, 2.0))
    orders.note([])
    assert orders.times == {"f": [2.0]}
