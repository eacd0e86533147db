"""An object with other weights: what lowering another method of the same structure would give.

    template = learn(first, second, weights_of_first, weights_of_second, first_to_second, scratch)
    if template is not None:
        template.write(weights_of_third, first_to_third, output)

Two methods that differ in their weights alone, lowered apart, show which data follow which weight:
those whose bytes are the bytes of one weight in the first object, and of the same weight in the
second. Data that are the same in both are the method's own. The proof, each time: the first object
with the second's weights is the second object, byte by byte. Where it is not (a weight is stored in
another form, or its value stands in the graph), there is no template.

XNNPACK's graphs name their weights by the hash of their bytes; these names follow the weights.
Objects are to be in their canonical layout (`canonical.py`).
"""

from __future__ import annotations

import copy
import filecmp
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from attrs import evolve, frozen

from mmpack.multimethod.link.canonical import laid_out
from mmpack.multimethod.link.extents import delegate_extents, tensors
from mmpack.multimethod.link.file import Extent, PteFile
from mmpack.multimethod.link.schema import Program
from mmpack.multimethod.link.write import Later, Piece, Segment, write_pte

Key = tuple[str, str]
"""A tensor of a module by its name there, and the form in which it is stored."""

_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Weights(Protocol):
    """The tensors of one method's module, in the forms in which an object may store them. Methods
    of one structure have the same keys; where two tensors are equal in one, they are in all."""

    def tensors(self) -> Sequence[Key]:
        """All tensors, each in one form."""

    def find(self, digest: str, size: int) -> Sequence[Key]:
        """Those with these bytes, by their sha256 and number."""

    def digest(self, key: Key) -> str:
        """sha256 of one's bytes."""

    def tells(self, key: Key) -> bool:
        """Whether its bytes in another form or order would be other bytes: zeros tell nothing."""

    def read(self, key: Key) -> bytes:
        """Its bytes."""


@frozen
class Datum:
    """A piece of data of the first object: the sha256 of its bytes, and the weights that it is,
    whose bytes are equal to it in both objects; none for what is the same in both."""

    digest: str
    keys: tuple[Key, ...]


@frozen(eq=False)
class Template:
    """An object and what in it follows the weights. `file` stays open: close it.

    alike: weights that are the same in both objects that it was learned from, with the sha256 of
    their bytes. What follows these was not seen.
    """

    file: PteFile
    program: Program
    segments: tuple[Segment, ...]
    data: Mapping[Extent, Datum]
    graphs: frozenset[Extent]
    alike: Mapping[Key, str]

    def close(self) -> None:
        self.file.close()

    def write(self, weights: Weights, names: Mapping[str, str], output: Path) -> bool:
        """Write the object of a method with these weights. False, and nothing, if it cannot be
        known what that is: a weight has changed that was the same in both objects; or data are
        equal, and so stored once, that are not so in the first method, or the other way round.

        names: of the method and of its buffers, in the first -> in this.
        """
        if any(weights.digest(key) != digest for key, digest in self.alike.items()):
            return False
        now: dict[str, str] = {}
        for datum in self.data.values():
            found = {weights.digest(key) for key in datum.keys} or {datum.digest}
            if len(found) != 1:
                return False
            now[datum.digest] = found.pop()
        if len(set(now.values())) < len(now):
            return False
        program = _renamed(self.program, names, now)
        segments = [
            evolve(s, pieces=tuple((at, self._piece(p, weights, now)) for at, p in s.pieces))
            for s in self.segments
        ]
        write_pte(output, program, segments, sealed=False, lasting=False)
        return True

    def _piece(self, piece: Piece, weights: Weights, now: Mapping[str, str]) -> Piece:
        extent = _extent(piece)
        if extent in self.graphs:
            return Piece(_with_keys(self.file.read(extent.offset, extent.size), now))
        datum = self.data.get(extent) if extent is not None else None
        if datum is None or now[datum.digest] == datum.digest:
            return piece
        return Piece(Later(piece.size, partial(weights.read, datum.keys[0])))


def learn(
    first: Path,
    second: Path,
    weights: Weights,
    others: Weights,
    names: Mapping[str, str],
    scratch: Path,
) -> Template | None:
    """What two objects of one structure tell, and the first's weights, the second's (`others`), and
    the names of the first's in the second. None if the proof fails. `scratch`: a path to use."""
    file = PteFile.open(first)
    try:
        template = _template(file, second, weights, others)
        known = template is not None and template.write(others, names, scratch)
        if known and filecmp.cmp(scratch, second, shallow=False):
            return template
    except BaseException:
        file.close()
        raise
    finally:
        scratch.unlink(missing_ok=True)
    file.close()
    return None


def _template(file: PteFile, second: Path, weights: Weights, others: Weights) -> Template | None:
    graphs = {e for plan in file.plans for e in delegate_extents(file, plan) if e.size}
    program, segments = laid_out(file)
    data: dict[Extent, Datum] = {}
    with PteFile.open(second) as other:
        its = laid_out(other)[1]
        if [_shape(s) for s in segments] != [_shape(s) for s in its]:
            return None
        for one, two in zip(_pieces(segments), _pieces(its), strict=True):
            extent = _extent(one)
            if extent is None or extent in graphs:
                continue
            digest, changed = _sha256(one), _sha256(two)
            keys: tuple[Key, ...] = ()
            if digest != changed:
                found = weights.find(digest, one.size)
                keys = tuple(key for key in found if others.digest(key) == changed)
                if not any(weights.tells(key) or others.tells(key) for key in keys):
                    return None
            data[extent] = Datum(digest, keys)
    alike = {k: d for k in weights.tensors() if (d := weights.digest(k)) == others.digest(k)}
    return Template(file, program, tuple(segments), data, frozenset(graphs), alike)


def _pieces(segments: Sequence[Segment]) -> Iterator[Piece]:
    return (piece for segment in segments for _, piece in segment.pieces)


def _shape(segment: Segment) -> object:
    places = [(at, piece.size) for at, piece in segment.pieces]
    return places, segment.inside, segment.alignment


def _extent(piece: Piece) -> Extent | None:
    """Where in its file a piece is; None for what is made anew, such as padding."""
    return piece.source[1] if isinstance(piece.source, tuple) else None


def _sha256(piece: Piece) -> str:
    state = hashlib.sha256()
    for chunk in piece.chunks():
        state.update(chunk)
    return state.hexdigest()


def _with_keys(graph: bytes, now: Mapping[str, str]) -> bytes:
    def key(found: re.Match[bytes]) -> bytes:
        old = found[0].decode()
        return now.get(old, old).encode()

    return _DIGEST.sub(key, graph)


def _renamed(program: Program, names: Mapping[str, str], now: Mapping[str, str]) -> Program:
    """A copy with the names of another method, and its keys of named data."""
    renamed = copy.deepcopy(program)
    for plan in renamed.execution_plan or ():
        plan.name = names.get(plan.name or "", plan.name)
    for tensor in tensors(renamed.execution_plan or ()):
        extra = tensor.extra_tensor_info
        if extra is not None and extra.fully_qualified_name is not None:
            name = extra.fully_qualified_name
            extra.fully_qualified_name = names.get(name, name)
    for entry in renamed.named_data or ():
        entry.key = now.get(entry.key or "", entry.key)
    return renamed
