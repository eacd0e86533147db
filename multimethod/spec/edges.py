"""Whether what one method gives is what another one takes.

>>> kv = Dim("kv", 32, 512, 32)
>>> k = ValueSpec("k", "float32", (1, 32, 96))
>>> agree(k, ValueSpec("x", "float32", (1, 64, 96)), {})
'gives float32[1, 32, 96], takes float32[1, 64, 96]: axis 1 differs'
>>> agree(k, ValueSpec("keys", "float32", (1, "kv", 96)), {"kv": kv}, cache=True)
"""

from __future__ import annotations

from collections.abc import Mapping

from mmpack.multimethod.signature import Dim, ValueSpec

Dims = Mapping[str, Dim]


def agree(producer: ValueSpec, consumer: ValueSpec, dims: Dims, cache: bool = False) -> str | None:
    """Why the producer's value cannot be the consumer's input, or None.

    Every size that can come must be one that is taken: a fixed 32 may go where `kv` is taken if
    kv admits 32, and `kv` may go where another dim is taken if that admits all of kv's sizes.

    cache: the value is appended to a cache, and the consumer reads the cache. The two then differ
    in exactly one axis, where the consumer has a dynamic dim; see `growing_axis`.
    """
    ends = f"gives {show(producer, dims)}, takes {show(consumer, dims)}"
    if wrong := _kind(producer, consumer):
        return f"{ends}: {wrong}"
    if cache:
        if growing_axis(producer, consumer, dims) is not None:
            return None
        return f"{ends}: to grow, they must differ in exactly one axis, a dynamic dim of the reader"
    pairs = zip(producer.shape or (), consumer.shape or (), strict=True)
    axes = [axis for axis, (a, b) in enumerate(pairs) if not _within(a, b, dims)]
    return f"{ends}: {_axes(axes)}" if axes else None


def growing_axis(producer: ValueSpec, consumer: ValueSpec, dims: Dims) -> int | None:
    """The axis along which a cache grows that one appends to and the other reads, or None if
    there is no such axis, or more than one."""
    given, taken = producer.shape or (), consumer.shape or ()
    if len(given) != len(taken):
        return None
    sizes = enumerate(zip(given, taken, strict=True))
    axes = [axis for axis, (a, b) in sizes if settled(a, dims) != settled(b, dims)]
    if len(axes) != 1 or settled(taken[axes[0]], dims) not in dims:
        return None
    return axes[0]


def clash(one: ValueSpec, other: ValueSpec, dims: Dims) -> str | None:
    """Why no value at all can be both of these inputs, or None."""
    ends = f"{show(one, dims)} and {show(other, dims)}"
    if wrong := _kind(one, other):
        return f"{ends}: {wrong}"
    pairs = zip(one.shape or (), other.shape or (), strict=True)
    axes = [
        axis
        for axis, (a, b) in enumerate(pairs)
        if not (_within(a, b, dims) or _within(b, a, dims) or _overlap(a, b, dims))
    ]
    return f"{ends}: {_axes(axes)}" if axes else None


def row_axis(whole: ValueSpec, row: ValueSpec, size: int, dims: Dims) -> int | None:
    """The one axis in which the two differ, where `whole` has a piece's `size` and `row` 1; or None
    if there is no such axis, or more that differ."""
    if _kind(whole, row) is not None:
        return None
    sizes = [
        (settled(a, dims), settled(b, dims))
        for a, b in zip(whole.shape or (), row.shape or (), strict=True)
    ]
    axes = [axis for axis, (a, b) in enumerate(sizes) if a != b]
    return axes[0] if len(axes) == 1 and sizes[axes[0]] == (size, 1) else None


def wrong_row(whole: ValueSpec, row: ValueSpec, size: int, dims: Dims) -> str | None:
    """Why a method for one row cannot have `row` where one for pieces of `size` has `whole`, or
    None."""
    if size == 1:
        return clash(whole, row, dims)
    if row_axis(whole, row, size, dims) is not None:
        return None
    return f"expected {show(whole, dims)} with 1 row in place of {size}, got {show(row, dims)}"


def settled(size: int | str, dims: Dims) -> int | str:
    """A size with a fixed dim as its number: the two are the same thing."""
    dim = dims.get(size) if isinstance(size, str) else None
    return dim.min if dim is not None and dim.fixed else size


def _kind(one: ValueSpec, other: ValueSpec) -> str | None:
    if one.dtype != other.dtype:
        return "the dtypes differ"
    if (one.shape is None) != (other.shape is None):
        return "one of them is no tensor"
    if len(one.shape or ()) != len(other.shape or ()):
        return "the number of axes differs"
    return None


def _within(a: int | str, b: int | str, dims: Dims) -> bool:
    """Whether every size that `a` can be is one that `b` admits."""
    a, b = settled(a, dims), settled(b, dims)
    if a == b:
        return True
    wide = dims.get(b) if isinstance(b, str) else None
    if wide is None:
        return False
    if isinstance(a, int):
        return wide.admits(a)
    narrow = dims.get(a)
    return (
        narrow is not None
        and wide.min <= narrow.min
        and narrow.max <= wide.max
        and narrow.step % wide.step == 0
    )


def _overlap(a: int | str, b: int | str, dims: Dims) -> bool:
    """Whether two dynamic dims may at all be of the same size. (Their steps are not compared.)"""
    if isinstance(a, int) or isinstance(b, int) or a not in dims or b not in dims:
        return False
    return dims[a].min <= dims[b].max and dims[b].min <= dims[a].max


def _axes(axes: list[int]) -> str:
    if len(axes) == 1:
        return f"axis {axes[0]} differs"
    return f"axes {', '.join(str(axis) for axis in axes)} differ"


def show(value: ValueSpec, dims: Dims) -> str:
    """A value without its name, which differs between the two ends of an edge."""
    return value.show(dims).removeprefix(f"{value.name}: ")
