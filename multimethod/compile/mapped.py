"""Tensors in files that this process maps: which file, and where in it; and files mapped anew.

Weights that safetensors reads are such tensors: they need not be written a second time for another
process to read.
"""

from __future__ import annotations

import bisect
import os
from pathlib import Path

import torch
from attrs import frozen


@frozen
class Range:
    """Addresses from `start` up to `end` hold what is in a file from `offset` on."""

    start: int
    end: int
    offset: int
    path: str


class Mappings:
    """The files that this process maps, as they are now; none where the system does not tell."""

    def __init__(self) -> None:
        self._ranges = sorted(_ranges(), key=lambda range_: range_.start)
        self._starts = [range_.start for range_ in self._ranges]
        self._files = MappedFiles()

    def find(self, flat: torch.Tensor) -> tuple[str, int] | None:
        """File and offset of the very bytes of a tensor whose elements lie one after another, or
        None if it is in no file, or was changed since it was mapped."""
        size, address = flat.numel() * flat.element_size(), flat.data_ptr()
        number = bisect.bisect_right(self._starts, address) - 1
        if not size or number < 0 or address + size > self._ranges[number].end:
            return None
        range_ = self._ranges[number]
        offset = range_.offset + address - range_.start
        try:
            there = self._files.bytes_of(Path(range_.path), offset, size)
        except (OSError, RuntimeError, ValueError):  # it was deleted or replaced
            return None
        same = torch.equal(there, flat.reshape(-1).view(torch.uint8))
        return (range_.path, offset) if same else None


class MappedFiles:
    """Files mapped into memory, each once. What is written to the memory stays out of the file."""

    def __init__(self) -> None:
        self._storages: dict[Path, torch.UntypedStorage] = {}

    def bytes_of(self, path: Path, offset: int, size: int) -> torch.Tensor:
        """A part of a file: [size] uint8, with a storage of its own that is as long, as ExecuTorch
        wants of weights. Raises OSError, or ValueError if the file is shorter."""
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        if path not in self._storages:
            length = path.stat().st_size
            if not length:
                raise ValueError(f"{path} is empty")
            mapped = torch.UntypedStorage.from_file(str(path), False, length)
            assert isinstance(mapped, torch.UntypedStorage)
            self._storages[path] = mapped
        storage = self._storages[path]
        if offset + size > storage.nbytes():
            raise ValueError(f"{path} has {storage.nbytes()} bytes, expected {offset + size}")
        part = storage[offset : offset + size]
        return torch.empty(0, dtype=torch.uint8).set_(part, 0, (size,), (1,))  # type: ignore[arg-type]


def _ranges() -> list[Range]:
    """Linux's own list, see proc_pid_maps(5)."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # another system
        return []
    found = []
    for line in lines:
        addresses, mode, offset, _, inode, *path = line.split(maxsplit=5)
        if inode == "0" or not path or not mode.startswith("r") or not os.path.isabs(path[0]):
            continue
        start, end = (int(number, 16) for number in addresses.split("-"))
        found.append(Range(start, end, int(offset, 16), path[0]))
    return found
