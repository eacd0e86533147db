"""What a user chooses for the spec of a language model, as `mmpack init` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen

from mmpack.multimethod.errors import SpecError, nearest
from mmpack.multimethod.targets import BACKENDS

Split = Literal["qkv/attention/mlp", "block", "whole"]
Cache = Literal["dynamic", "fixed"]
EMBEDDING = "portable"
"""The backend that looks up embedding tables."""


@frozen
class Target:
    """A backend and its options, as they will stand in the spec.

    quantized: whether its precision is. calibrated: whether that takes the ranges of activations
    from example inputs.
    """

    backend: str
    options: Mapping[str, Any] = field(factory=dict)
    quantized: bool = False
    calibrated: bool = False


@frozen
class Choices:
    """chunk: tokens of a prompt that are read at once; 1 reads it token by token.
    context: tokens of prompt and answer together, the rows of the caches.
    cache: `dynamic` caches grow with the text and belong to the caller; `fixed` ones are state in
        the program, as long as the context. `block` and `whole` know fixed ones only, and None is
        `dynamic` where it can be.
    npu: where methods with static shapes go; None if that is `cpu`.
    embedding: precision of the embedding's table; None for float32.

    Raises SpecError for choices that exclude each other.
    """

    chunk: int
    context: int
    split: Split = "qkv/attention/mlp"
    cache: Cache | None = None
    npu: Target | None = None
    cpu: Target = Target("xnnpack")
    embedding: str | None = None

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.chunk <= self.context:
            raise wrong(
                f"a chunk of {self.chunk} tokens and a context of {self.context}: expected at "
                "least 1 token a chunk, and a context of at least one chunk"
            )
        if self.context == 1 and not self.fixed:
            raise wrong("--context 1: a cache that grows has room for 2 tokens at least")
        if self.split != "qkv/attention/mlp" and self.cache == "dynamic":
            raise wrong(
                f"--split {self.split} keeps its caches in the program: --cache fixed. Caches that "
                "grow are for attention in a method of its own: --split qkv/attention/mlp"
            )
        if self.embedding is not None:
            if ":" in self.embedding or "=" in self.embedding:
                raise wrong(f"--embedding {self.embedding}: expected a precision alone, as in 8w")
            table = target(f"{EMBEDDING}:{self.embedding}", "--embedding")
            if self.split == "whole" and table.quantized:
                raise wrong(
                    f"--embedding {self.embedding}: with --split whole the embedding is no method "
                    "of its own, whose table could be integers: --split qkv/attention/mlp or block"
                )

    @property
    def fixed(self) -> bool:
        """Whether the caches are state in the program."""
        return self.cache == "fixed" or self.split != "qkv/attention/mlp"

    @property
    def static(self) -> Target:
        """Where methods with static shapes go."""
        return self.npu or self.cpu


def target(text: str, flag: str) -> Target:
    """A target written `backend:option:option`, its options in the order of the backend's record
    (`qnn:SM8750:16a4w`), or by name (`qnn:SM8750:precision=16a4w`). Raises SpecError."""
    backend, *values = text.split(":")
    if backend not in BACKENDS:
        raise wrong(f"{flag} {text}: no backend is called {backend!r}"
                         f"{nearest(backend, BACKENDS)}")  # fmt: skip
    known = [a.name for a in attrs.fields(BACKENDS[backend].Options)]
    options: dict[str, Any] = {}
    for number, value in enumerate(values):
        name, equals, rest = value.partition("=")
        if not equals and number >= len(known):
            raise wrong(f"{flag} {text}: {backend} has no option number {number + 1}")
        name, given = (name, rest) if equals else (known[number], value)
        if name not in known:
            raise wrong(f"{flag} {text}: {backend} has no option {name!r}{nearest(name, known)}")
        options[name] = int(given) if given.isdecimal() else given
    try:
        made = BACKENDS[backend].options(options)
    except ValueError as error:
        raise wrong(f"{flag} {text}: {error}") from error
    quantized = BACKENDS[backend].sqnr(made) is not None
    return Target(backend, options, quantized, quantized and BACKENDS[backend].calibrated(made))


def wrong(message: str) -> SpecError:
    return SpecError([message])
