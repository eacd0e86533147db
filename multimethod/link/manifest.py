"""The manifest: what mmpack knows about a program, as JSON inside the program.

    with PteFile.open("model.pte") as file:
        manifest = read_manifest(file)  # in `check_manifest.py`
        print(manifest.methods["qkv_proj"].signature)

It is the named data blob `mmpack.manifest`, so it is read without running anything, and a
runtime that knows nothing of it ignores it. Equal manifests are equal bytes.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import cattrs
from attrs import field, frozen
from cattrs.preconf.json import make_converter

from mmpack.multimethod.errors import FormatError
from mmpack.multimethod.scale import EndScales
from mmpack.multimethod.signature import Signature

MANIFEST_KEY = "mmpack.manifest"
VERSION = 1
_DEEPEST = 100
"""Levels of lists and mappings; ours have about ten."""

Constant = int | float | bool | str


@frozen
class MethodRecord:
    """One method.

    target: the target's name in the spec; backend, options: what it stands for; lane: the processor
    that runs it.
    operators, delegated: operators in all, and how many of them a delegate runs; left: names and
    numbers of those that none does.
    size: bytes of delegate data and weights that the method reaches, shared ones included.
    key: content hash of the unit that the object was made from.
    error, tolerance: largest absolute error against eager PyTorch and what was allowed; None
    where nothing was compared. verified: it was compared and passed.
    sqnr, least_sqnr: for a quantized method the signal-to-quantization-noise ratio of its worst
    output, and the least that was allowed, in dB; an `sqnr` without noise is None.
    scales: of a quantized method, those at each of its ends that is quantized.
    """

    signature: Signature
    target: str = ""
    backend: str = ""
    options: dict[str, Any] = field(factory=dict)
    operators: int = 0
    delegated: int = 0
    left: dict[str, int] = field(factory=dict)
    size: int = 0
    key: str = ""
    error: float | None = None
    tolerance: float | None = None
    verified: bool = False
    sqnr: float | None = None
    least_sqnr: float | None = None
    scales: tuple[EndScales, ...] = ()
    extra: dict[str, Any] = field(factory=dict)
    lane: str = ""


@frozen
class StateRecord:
    """One mutable buffer: who uses it, and whether they all see one memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shared: bool
    methods: tuple[str, ...]
    initial: Literal["zero", "data"] = "zero"


@frozen
class DataRecord:
    """What a program keeps outside. file: the name of a `.ptd` beside it; keys: those that it
    needs there, each with the number of its bytes and their CRC-32."""

    file: str
    keys: dict[str, tuple[int, int]] = field(factory=dict)


@frozen
class Manifest:
    """flow: the spec's flows as plain data. constants: constant methods and their values. files:
    those that travel in the program (`files.py`), and their bytes. provenance: versions, hashes
    and options of the build. data: what it keeps in another file, if it does."""

    methods: dict[str, MethodRecord] = field(factory=dict)
    state: tuple[StateRecord, ...] = ()
    flow: dict[str, Any] = field(factory=dict)
    constants: dict[str, Constant] = field(factory=dict)
    provenance: dict[str, Any] = field(factory=dict)
    mmpack: str = ""
    version: int = VERSION
    files: dict[str, int] = field(factory=dict)
    data: DataRecord | None = None


_json = make_converter(forbid_extra_keys=True)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is stored. TypeError if `flow`, `options`, … hold more than plain data."""
    plain = _json.unstructure(manifest)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_manifest(data: bytes, what: str) -> Manifest:
    """The way back from `manifest_bytes`; `what` starts the messages of its FormatErrors."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: manifest: not JSON: {error}") from error
    _refuse_unwritable(plain, what)
    version = plain.get("version") if isinstance(plain, dict) else None
    if not isinstance(version, int):
        raise FormatError(f"{what}: manifest: has no version")
    if version != VERSION:
        raise FormatError(
            f"{what}: manifest: version {version}; this mmpack reads {VERSION}, use a newer one"
        )
    try:
        return _json.structure(plain, Manifest)
    except (cattrs.BaseValidationError, RecursionError) as error:
        lines = cattrs.transform_error(error) if isinstance(error, Exception) else [str(error)]
        raise FormatError(f"{what}: manifest: " + "; ".join(lines)) from error


def _refuse_unwritable(plain: Any, what: str) -> None:
    """What JSON can say but nothing that walks or writes it can cope with: it nests too deep, or
    its text is half a character (`"\\ud800"`)."""
    level = [plain]
    for _ in range(_DEEPEST):
        texts = [text for text in level if isinstance(text, str)]
        texts += [key for part in level if isinstance(part, dict) for key in part]
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise FormatError(f"{what}: manifest: has text that is none: {error}") from error
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise FormatError(f"{what}: manifest: has more than {_DEEPEST} levels")
