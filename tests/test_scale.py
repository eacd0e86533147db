"""What two places that quantize one tensor may differ in."""

from __future__ import annotations

import pytest

from mmpack.multimethod.scale import Scale, agree, disagreement

INT8 = Scale(0.1, 3, -128, 127, "int8")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Scale(0.1, 3, -128, 127, "int8"), True),
        (Scale(0.1, 4, -128, 127, "int8"), False),
        (Scale(0.1001, 3, -128, 127, "int8"), False),
        (Scale(0.1, 131, 0, 255, "uint8"), True),  # the same range, from -13.1 to 12.4
        (Scale(0.1, 128, 0, 255, "uint8"), False),
        (Scale(25.5 / 65535, 33667, 0, 65535, "uint16"), True),
        (Scale(26.5 / 65535, 33667, 0, 65535, "uint16"), False),
    ],
)
def test_what_agrees(other: Scale, same: bool) -> None:
    assert agree(INT8, other) is same is agree(other, INT8)


def test_of_several_places_the_first_and_one_that_disagrees_are_told() -> None:
    other = Scale(0.2, 3, -128, 127, "int8")
    assert disagreement([]) is None
    assert disagreement([("a", INT8), ("b", INT8)]) is None
    found = disagreement([("a", INT8), ("b", INT8), ("c", other), ("d", INT8)])
    assert found == (("a", INT8), ("c", other))
