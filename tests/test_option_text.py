"""Values of options, from what stands on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest

from mmpack.multimethod import option_text


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("4096", 4096), ("2G", 2 * 10**9), ("1.5GB", 15 * 10**8), ("500 MB", 5 * 10**8)],
)
def test_sizes(text: str, count: int) -> None:
    assert option_text.byte_count(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1e3", "1,5G", "\u0663"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size like 500M, 2G or 4096"):
        option_text.byte_count(text)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (option_text.lanes, None, {}),
        (option_text.threads, None, None),
        (option_text.threads, "1", 1),
        (option_text.threads, "npu=1,cpu=1", {"npu": 1, "cpu": 1}),
        (option_text.lanes, "npu=1,cpu=2", {"npu": 1, "cpu": 2}),
        (option_text.ratio, None, None),
        (option_text.ratio, "2:1.5", [2.0, 1.5]),
        (option_text.numbers, "1, 2,30", [1, 2, 30]),
        (option_text.sizes, ["n=3", "m=4"], {"n": 3, "m": 4}),
    ],
)
def test_what_is_right(parse: Callable[[Any], Any], text: Any, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (option_text.lanes, "npu", "'npu': expected NAME=N,…"),
        (option_text.threads, "2", "'2': expected 1, or LANE=1,…"),
        (option_text.threads, "npu=2", "'npu=2': expected 1, or nothing for the whole pool"),
        (option_text.lanes, "npu=1,npu=2", "'npu=2': 'npu' was given twice"),
        (option_text.lanes, "npu=-1", "'npu=-1': '-1' is not a whole number"),
        (option_text.ratio, "2:0", "'2:0': expected numbers above 0, as in 2:1"),
        (option_text.ratio, "2:x", "'2:x': expected numbers above 0, as in 2:1"),
        (option_text.numbers, "1,b", "'1,b': expected numbers of tokens like 1,2,3"),
        (option_text.sizes, ["n=x"], "'n=x': 'x' is not a whole number"),
    ],
)
def test_what_is_wrong(parse: Callable[[Any], Any], text: Any, says: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        parse(text)
    assert raised.value.message == says
