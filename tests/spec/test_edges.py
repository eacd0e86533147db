"""What may be connected with what."""

import pytest

from mmpack.multimethod.signature import Dim, ValueSpec
from mmpack.multimethod.spec.edges import agree, clash, growing_axis, row_axis, wrong_row

DIMS = {
    dim.name: dim
    for dim in (
        Dim("chunk", 32, 32),
        Dim("kv", 32, 512, 32),
        Dim("half", 16, 256, 16),
        Dim("any", 1, 1024),
        Dim("far", 600, 700),
    )
}


def value(*shape: int | str, dtype: str = "float32") -> ValueSpec:
    return ValueSpec("x", dtype, shape)


@pytest.mark.parametrize(
    ("gives", "takes", "fits"),
    [
        ((1, 32), (1, 32), True),
        ((1, 32), (1, 64), False),
        ((1, "chunk"), (1, 32), True),
        ((1, 32), (1, "chunk"), True),
        ((1, 64), (1, "kv"), True),
        ((1, 65), (1, "kv"), False),
        ((1, "chunk"), (1, "kv"), True),
        ((1, "kv"), (1, "kv"), True),
        ((1, "kv"), (1, 32), False),
        ((1, "kv"), (1, "any"), True),
        ((1, "any"), (1, "kv"), False),
        ((1, "kv"), (1, "half"), False),
        ((1, "kv + 32"), (1, "kv + 32"), True),
        ((1, "kv + 32"), (1, "kv"), False),
        ((1, 32), (32,), False),
        ((), (), True),
    ],
)
def test_agree(gives: tuple[int | str, ...], takes: tuple[int | str, ...], fits: bool) -> None:
    assert (agree(value(*gives), value(*takes), DIMS) is None) is fits


@pytest.mark.parametrize(
    ("gives", "takes", "axis"),
    [
        ((1, 32, 8), (1, "kv", 8), 1),
        ((1, "chunk", 8), (1, "kv", 8), 1),
        ((8, 1), (8, "any"), 1),
        ((1, 32, 8), (1, 64, 8), None),
        ((1, 32, 8), (1, 32, 8), None),
        ((1, 32, 8), (1, "kv", "any"), None),
        ((1, 32, 8), ("kv", 8), None),
        ((1, "kv", 8), (1, "kv", 8), None),
    ],
)
def test_cache(
    gives: tuple[int | str, ...], takes: tuple[int | str, ...], axis: int | None
) -> None:
    assert growing_axis(value(*gives), value(*takes), DIMS) == axis
    assert (agree(value(*gives), value(*takes), DIMS, cache=True) is None) is (axis is not None)


@pytest.mark.parametrize(
    ("one", "other", "possible"),
    [
        ((1, 32), (1, "kv"), True),
        (("kv",), ("half",), True),
        (("kv",), ("far",), False),
        ((1, 32), (1, 33), False),
        ((33,), ("kv",), False),
    ],
)
def test_clash(one: tuple[int | str, ...], other: tuple[int | str, ...], possible: bool) -> None:
    assert (clash(value(*one), value(*other), DIMS) is None) is possible
    assert (clash(value(*other), value(*one), DIMS) is None) is possible


@pytest.mark.parametrize(
    ("whole", "row", "size", "axis"),
    [
        ((1, 32, 8), (1, 1, 8), 32, 1),
        (("chunk", "kv"), (1, "kv"), 32, 0),
        ((32, "chunk"), (32, 1), 32, 1),
        ((32, "chunk"), (1, 1), 32, None),
        ((1, 32, 8), (1, 32, 8), 32, None),
        ((1, 32, 8), (1, 2, 8), 32, None),
        ((1, 32, 8), (1, 32, 1), 32, None),
        ((1, 32, 8), (1, 8), 32, None),
        (("kv", 8), (1, 8), 32, None),
    ],
)
def test_rows(
    whole: tuple[int | str, ...], row: tuple[int | str, ...], size: int, axis: int | None
) -> None:
    assert row_axis(value(*whole), value(*row), size, DIMS) == axis
    assert (wrong_row(value(*whole), value(*row), size, DIMS) is None) is (axis is not None)
    assert wrong_row(value(*whole), value(*row, dtype="int8"), size, DIMS) is not None


def test_where_a_piece_is_a_row_nothing_differs() -> None:
    assert wrong_row(value(1, 8), value(1, 8), 1, DIMS) is None
    assert wrong_row(value(1, 8), value(1, 7), 1, DIMS) == (
        "float32[1, 8] and float32[1, 7]: axis 1 differs"
    )


def test_what_is_said() -> None:
    assert wrong_row(value("chunk", 8), value(2, 8), 32, DIMS) == (
        "expected float32[chunk=32, 8] with 1 row in place of 32, got float32[2, 8]"
    )
    half = value(1, "kv", 96, dtype="float16")
    assert agree(half, value(1, "kv", 96), DIMS) == (
        "gives float16[1, kv=32..512:32, 96], takes float32[1, kv=32..512:32, 96]: "
        "the dtypes differ"
    )
    assert agree(value(1, 2, 3), value(1, 3, 2), DIMS) == (
        "gives float32[1, 2, 3], takes float32[1, 3, 2]: axes 1, 2 differ"
    )
    assert agree(value(1, 2), value(1), DIMS) == (
        "gives float32[1, 2], takes float32[1]: the number of axes differs"
    )
    assert agree(value(1, 64, 8), value(1, "chunk", 8), DIMS, cache=True) == (
        "gives float32[1, 64, 8], takes float32[1, chunk=32, 8]: to grow, they must differ in "
        "exactly one axis, a dynamic dim of the reader"
    )
    assert agree(ValueSpec("n", "int64", None), value(dtype="int64"), DIMS) == (
        "gives int64, takes int64[]: one of them is no tensor"
    )
