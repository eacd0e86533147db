"""What a method takes and returns: names, dtypes, and shapes of numbers and named dims.

    >>> kv = Dim("kv", 32, 512, 32)
    >>> chunk = Dim("chunk", 32, 32)
    >>> q = ValueSpec("q", "float32", (1, "chunk", 96))
    >>> k = ValueSpec("k", "float32", (1, "kv", 2))
    >>> out = ValueSpec("out", "float32", (1, 32, 96))
    >>> print(Signature("attn", (q, k), (out,), {"kv": kv, "chunk": chunk}))
    attn(q: float32[1, chunk=32, 96], k: float32[1, kv=32..512:32, 2]) -> (out: float32[1, 32, 96])

A signature is plain data, without torch: the spec makes it, the manifest carries it inside the
program, and the runtime enforces it before every call.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

DTYPES: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "bool": 1,
}
"""The dtypes that a method may take and return, by torch's names, with bytes per element."""


@frozen
class Dim:
    """A named size: the same symbol means the same number everywhere in one call.

    `min` and `max` are inclusive; a size is valid if it is a multiple of `step` (like
    `torch.export`'s derived dims). A dim whose minimum is its maximum is fixed.
    """

    name: str
    min: int
    max: int
    step: int = 1

    @property
    def fixed(self) -> bool:
        return self.min == self.max

    def admits(self, size: int) -> bool:
        return self.min <= size <= self.max and (self.fixed or size % self.step == 0)

    def samples(self) -> tuple[int, ...]:
        """The sizes that verification tries: the minimum, a middle, the maximum."""
        if self.fixed:
            return (self.min,)
        middle = (self.min + self.max) // 2 // self.step * self.step
        return tuple(sorted({self.min, max(middle, self.min), self.max}))

    def __str__(self) -> str:
        if self.fixed:
            return f"{self.name}={self.min}"
        step = f":{self.step}" if self.step != 1 else ""
        return f"{self.name}={self.min}..{self.max}{step}"


@frozen
class ValueSpec:
    """One input or output. `shape` entries are sizes or names of dims; in outputs they may be
    expressions of dims ("kv + 32"). `shape` is None for a Python scalar (`dtype` is then one of
    "int", "float", "bool", "str")."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def show(self, dims: Mapping[str, Dim]) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype}"
        sizes = ", ".join(str(dims.get(str(size), size)) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


@frozen
class Signature:
    """A method's inputs and outputs, in call order, and the dims that their shapes name."""

    method: str
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    dims: Mapping[str, Dim] = field(factory=dict)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dims that are not fixed, in the order in which the inputs meet them."""
        met: dict[str, None] = {}
        for value in self.inputs:
            for size in value.shape or ():
                if isinstance(size, str) and size in self.dims and not self.dims[size].fixed:
                    met[size] = None
        return tuple(met)

    def __str__(self) -> str:
        takes = ", ".join(value.show(self.dims) for value in self.inputs)
        gives = ", ".join(value.show({}) for value in self.outputs)
        return f"{self.method}({takes}) -> ({gives})"


def wrong_method_name(name: str) -> str | None:
    """Why no method can be called that, or None."""
    if name and name.isprintable() and not set(name) & set(" {}/\\"):
        return None
    return f"expected a name without spaces, slashes and braces, got {name!r}"


def wrong_file_name(name: str) -> str | None:
    """Why no file inside a program can be called that, or None."""
    if name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\"):
        return None
    return f"expected a plain name like tokenizer.json, got {name!r}"


def wrong_data_name(name: str) -> str | None:
    """Why no file of data beside a program can be called that, or None."""
    if wrong_file_name(name) is None and name.endswith(".ptd") and name != ".ptd":
        return None
    return f"expected a plain name that ends in .ptd, got {name!r}"
