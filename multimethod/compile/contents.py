"""Contents: the bytes of weights, known by their hash, in files where a worker maps them.

A unit refers to its weights so. Those that a checkpoint's file holds unchanged are referred to
there; each of the others is written once a build, whichever units it belongs to, into a safetensors
file whose keys are the hashes. Such a file goes when the last unit that refers to it is done.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import nn

from mmpack.multimethod.compile.describe import hash_tensor
from mmpack.multimethod.compile.mapped import MappedFiles, Mappings
from mmpack.multimethod.errors import CompileError, OutputError


@frozen
class Slice:
    """Some bytes of a file, and their hash as that of a tensor (see `hash_tensor`)."""

    hash: str
    path: str
    offset: int
    size: int


@frozen
class Held:
    """A tensor whose elements lie one after another in a file, as its strides say; its content is
    hashed as one axis of that dtype."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    content: Slice


def is_plain(thing: object) -> bool:
    """Whether it is a tensor, and nothing but its elements. Others go with their program."""
    if not isinstance(thing, torch.Tensor) or type(thing) not in (torch.Tensor, nn.Parameter):
        return False
    if thing.layout != torch.strided or thing.device.type != "cpu" or thing.is_quantized:
        return False
    return not (thing.is_conj() or thing.is_neg())


class Contents:
    """Where the weights of a build's units are."""

    def __init__(self) -> None:
        self._known: dict[str, Slice] = {}
        self._written: dict[str, int] = {}
        """Path of a file that was written here -> how many units refer to it."""
        self._users: dict[str, set[str]] = {}
        self._hashes: dict[int, tuple[nn.Parameter, str]] = {}

    def hold(self, unit: str, tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, Held]:
        """What a unit refers to in the place of its tensors; what is in no file yet is written to
        `path`. Raises OutputError if it cannot be."""
        laid = {name: _laid(tensor.detach()) for name, tensor in tensors.items()}
        hashes = {name: self._hash(tensor, laid[name][0]) for name, tensor in tensors.items()}
        mappings = Mappings()
        new: dict[str, torch.Tensor] = {}
        for name, (flat, _) in laid.items():
            key = hashes[name]
            if key in self._known or key in new:
                continue
            if (place := mappings.find(flat)) is not None:
                self._known[key] = Slice(key, *place, flat.numel() * flat.element_size())
            else:
                new[key] = flat
        self._known.update(_write(path, new))
        held = {
            name: Held(
                str(tensor.dtype).removeprefix("torch."),
                tuple(tensor.shape),
                laid[name][1],
                self._known[hashes[name]],
            )
            for name, tensor in tensors.items()
        }
        if new:
            self._written[str(path)] = 0
        used = {h.content.path for h in held.values()} & self._written.keys()
        self._users[unit] = used
        for file in used:
            self._written[file] += 1
        return held

    def _hash(self, tensor: torch.Tensor, flat: torch.Tensor) -> str:
        """Methods share weights, which nothing changes meanwhile: those are hashed once."""
        if not isinstance(tensor, nn.Parameter):
            return hash_tensor(flat)
        if id(tensor) not in self._hashes:
            self._hashes[id(tensor)] = (tensor, hash_tensor(flat))
        return self._hashes[id(tensor)][1]

    def release(self, unit: str) -> None:
        """A unit is done: files that no other one refers to are removed."""
        for file in self._users.pop(unit, ()):
            self._written[file] -= 1
            if not self._written[file]:
                del self._written[file]
                self._known = {k: s for k, s in self._known.items() if s.path != file}
                Path(file).unlink(missing_ok=True)


class Reader:
    """Reads the tensors of one unit, and makes sure that they are what it was made of.

    folder: of contents by hash, where the unit came from another machine: what it says of files is
    of no use then.
    """

    def __init__(self, unit: str, folder: Path | None = None) -> None:
        self._unit = unit
        self._folder = folder
        self._files = MappedFiles()

    def tensor(self, name: str, held: Held, *, own: bool) -> torch.Tensor:
        """Raises CompileError if it cannot be read, or is another one. own: something may be
        written to it, so it must have its memory for itself."""
        dtype: torch.dtype = getattr(torch, held.dtype)
        place = held.content
        path, offset = Path(place.path), place.offset
        if self._folder is not None:
            path, offset = self._folder / place.hash, 0
        try:
            flat = self._files.bytes_of(path, offset, place.size)
        except (OSError, RuntimeError, ValueError) as error:
            raise CompileError(f"{self._unit}: {name!r} cannot be read: {error}") from error
        if own or flat.data_ptr() % dtype.itemsize:
            flat = flat.clone()
        flat = flat.view(dtype)
        brought = self._folder is not None
        require_content(f"{self._unit}: {name!r}", flat, place.hash, path, remove=brought)
        return flat.as_strided(held.shape, held.strides)


def require_content(
    what: str, tensor: torch.Tensor, wanted: str, path: Path, *, remove: bool
) -> None:
    """Raise CompileError if what was read in a file is not what has that hash. remove: the file
    too, which would be taken for that the next time."""
    found = hash_tensor(tensor)
    if found != wanted:
        if remove:
            path.unlink(missing_ok=True)
        raise CompileError(
            f"{what} is damaged, or was changed while this was built: expected what has the hash "
            f"{wanted[:16]}…, found {found[:16]}… in {path}"
        )


def _laid(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A tensor's elements in the order in which they lie in memory, and its strides among them. Of
    one with gaps between them, or with one element in several places, a copy without."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: strides[axis], reverse=True)
    in_order = tensor.permute(order)
    if in_order.is_contiguous():
        return in_order.reshape(-1), strides
    copy = tensor.contiguous()
    return copy.reshape(-1), copy.stride()


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Slice]:
    """A safetensors file of bytes, written from where they are: safetensors' own writer wants
    tensors that have no memory in common. Larger elements first, so that all are aligned."""
    if not tensors:
        return {}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        header[key] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    begin = 8 + len(text)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, tensor in ordered:
                if tensor.numel():
                    file.write(tensor.view(torch.uint8).numpy().data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    return {
        key: Slice(key, os.fspath(path), begin + place["data_offsets"][0], place["shape"][0])
        for key, place in header.items()
    }
