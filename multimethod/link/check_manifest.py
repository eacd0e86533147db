"""The manifest of a program, held against the program.

A checksum tells that a file is as it was written, not that who wrote it was right. So what a
manifest says of a method is compared with the method's plan before anything is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.files import require_files
from mmpack.multimethod.link.manifest import (
    MANIFEST_KEY,
    DataRecord,
    Manifest,
    MethodRecord,
    parse_manifest,
)
from mmpack.multimethod.link.signatures import foreign_signature
from mmpack.multimethod.signature import Dim, Signature, ValueSpec, wrong_data_name

_LARGEST = 256 << 20
"""Bytes of a manifest."""


def read_manifest(file: PteFile) -> Manifest | None:
    """The manifest of a program; None if mmpack did not make it. Raises FormatError."""
    segment = file.named.get(MANIFEST_KEY)
    if segment is None:
        require_files(file, None)
        return None
    if file.segments[segment].size > _LARGEST:
        raise FormatError(f"{file.path}: its manifest has {file.segments[segment].size} bytes")
    manifest = parse_manifest(file.segment_bytes(segment), str(file.path))
    strange = sorted((set(manifest.methods) | set(manifest.constants)) - set(file.methods))
    if strange:
        raise FormatError(f"{file.path}: manifest: the program has no method {strange[0]!r}")
    require_files(file, manifest)
    if manifest.data is not None and (message := _wrong_data(manifest.data)):
        raise FormatError(f"{file.path}: manifest: data: {message}")
    for name, record in manifest.methods.items():
        for mistake in _mistakes(record, foreign_signature(file, name)):
            raise FormatError(f"{file.path}: manifest: method {name!r}: {mistake}")
    return manifest


def _wrong_data(data: DataRecord) -> str | None:
    if message := wrong_data_name(data.file):
        return message
    for key, (size, crc) in data.keys.items():
        if not key or size < 0 or not 0 <= crc < 1 << 32:
            return f"{key!r} has {size} bytes of CRC-32 {crc}"
    return None


def _mistakes(record: MethodRecord, plan: Signature) -> Iterator[str]:
    """What cannot be right of a method whose plan says `plan`."""
    signature = record.signature
    if signature.method != plan.method:
        yield f"its signature is that of {signature.method!r}"
    for name, dim in signature.dims.items():
        if dim.name != name or not 0 <= dim.min <= dim.max or dim.step < 1:
            yield f"dim {name!r} is {dim.name}={dim.min}..{dim.max}:{dim.step}"
    for kind, ours, theirs in (
        ("input", signature.inputs, plan.inputs),
        ("output", signature.outputs, plan.outputs),
    ):
        if len(ours) != len(theirs):
            yield f"the manifest has {len(ours)} {kind}s and the program {len(theirs)}"
        for value, planned in zip(ours, theirs, strict=False):
            dims = signature.dims if kind == "input" else None
            if not _fits(value, planned, dims, plan.dims):
                yield (
                    f"{kind} {value.show(signature.dims)} stands where the program has "
                    f"{planned.show(plan.dims)}"
                )
    if not _is_ranges(record.extra.get("ranges", {})):
        yield "its ranges are not pairs of integers by input"


def _fits(
    value: ValueSpec, planned: ValueSpec, dims: Mapping[str, Dim] | None, most: Mapping[str, Dim]
) -> bool:
    """Whether a value of a signature can be one of the plan, which knows upper bounds.

    dims: those that its shape may name; None for an output, whose shape may have expressions.
    """
    if value.shape is None or planned.shape is None:
        return value.shape is planned.shape and value.dtype == planned.dtype
    if value.dtype != planned.dtype or len(value.shape) != len(planned.shape):
        return False
    for size, bound in zip(value.shape, planned.shape, strict=True):
        if isinstance(size, str) and dims is None:
            continue
        if isinstance(size, str) and size not in (dims or {}):
            return False
        dim = Dim("", size, size) if isinstance(size, int) else (dims or {})[size]
        if isinstance(bound, int) and not dim.min == dim.max == bound:
            return False
        if isinstance(bound, str) and not 0 <= dim.min <= dim.max <= most[bound].max:
            return False
    return True


def _is_ranges(plain: Any) -> bool:
    if not isinstance(plain, dict):
        return False
    return all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
        for pair in plain.values()
    )
