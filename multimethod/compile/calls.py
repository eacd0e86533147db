"""Calls of methods on disk: the inputs that calibration saw, read back one call at a time.

A tape is one file of bytes. Equal tensors are written once, whichever method they belong to, so
what feeds three methods takes the room of one; in memory there is never more than one call. On
another machine a folder stands in its place, with a file for each tensor, called by its hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from attrs import field, frozen

from mmpack.multimethod.compile.contents import require_content
from mmpack.multimethod.compile.describe import hash_tensor
from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.scale import End


@frozen
class Place:
    """Where a tensor is on a tape, what it is, and the hash of its content."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    hash: str

    @property
    def size(self) -> int:
        """In bytes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * dtype.itemsize


Call = tuple[Place, ...]
"""The inputs of one call, in call order."""


class Tape:
    """A file that is written to and read from: `with Tape(path) as tape: call = tape.write(…)`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Place] = {}
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as failed:  # what was still in its buffer
            raise self._unwritable(failed) from failed

    def write(self, tensors: Sequence[torch.Tensor]) -> Call:
        return tuple(self._place(tensor) for tensor in tensors)

    def _place(self, tensor: torch.Tensor) -> Place:
        content = hash_tensor(tensor)
        if content not in self._known:
            flat = tensor.detach().contiguous().reshape(-1)
            place = Place(
                self._file.tell(),
                str(tensor.dtype).removeprefix("torch."),
                tuple(tensor.shape),
                content,
            )
            try:
                self._file.write(flat.view(torch.uint8).numpy().data)
            except OSError as error:
                raise self._unwritable(error) from error
            self._known[content] = place
        return self._known[content]

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path} cannot be written: {error.strerror}")


def read_calls(path: Path, calls: Sequence[Call]) -> Iterator[list[torch.Tensor]]:
    """The inputs of each call, read when its turn comes.

    Raises CompileError if one in a folder of contents is not what it should be."""
    if path.is_dir():
        for call in calls:
            yield [_of_folder(path, place) for place in call]
        return
    with path.open("rb") as file:
        for call in calls:
            yield [_read(file, place, place.offset) for place in call]


def _of_folder(folder: Path, place: Place) -> torch.Tensor:
    with (folder / place.hash).open("rb") as file:
        tensor = _read(file, place, 0)
    what = "a calibration's input"
    require_content(what, tensor, place.hash, folder / place.hash, remove=True)
    return tensor


def _read(file: Any, place: Place, offset: int) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    tensor = torch.empty(place.shape, dtype=dtype)
    file.seek(offset)
    if tensor.numel():
        file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return tensor


@frozen
class Examples:
    """What calibration recorded of some methods, by name.

    calls: those that ranges are taken from. held_back: those that the result is judged by.
    ranges: least and largest value at the ends of a method.
    flows: inputs of whole flows, by the flow's name, in the order of its cut inputs.
    buffers: names, in the model, of a method's state. before: what is in them before each of its
    `calls`, in that order.
    """

    tape: Path
    calls: Mapping[str, tuple[Call, ...]]
    held_back: Mapping[str, tuple[Call, ...]]
    ranges: Mapping[str, Mapping[End, tuple[float, float]]]
    flows: Mapping[str, tuple[Call, ...]] = field(factory=dict)
    buffers: Mapping[str, tuple[str, ...]] = field(factory=dict)
    before: Mapping[str, tuple[Call, ...]] = field(factory=dict)


NO_EXAMPLES = Examples(Path(), {}, {}, {})


T = TypeVar("T")


def spread(calls: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many of some calls, evenly from the first to the last."""
    if len(calls) <= most:
        return tuple(calls)
    return tuple(calls[i * (len(calls) - 1) // (most - 1)] for i in range(most))
