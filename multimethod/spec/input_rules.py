"""Rules about inputs: names, shapes, dtypes and ranges. Methods and the sample have the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from keyword import iskeyword

from mmpack.multimethod.errors import nearest
from mmpack.multimethod.signature import DTYPES
from mmpack.multimethod.spec.mistakes import Finding, Findings, Keys, unknown
from mmpack.multimethod.spec.partial import Draft
from mmpack.multimethod.spec.records import InputSpec

LARGEST = 2**31 - 1
"""ExecuTorch keeps sizes as int32."""

_OTHER_NAMES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
    "double": "float64",
    "fp64": "float64",
    "long": "int64",
    "int": "int64",
    "short": "int16",
    "byte": "uint8",
}
"""What dtypes are called elsewhere -> torch's own name."""

_UNSIGNED = ("uint8", "uint16")
_INTEGERS = tuple(name for name in DTYPES if "int" in name)


def check_inputs(inputs: Mapping[str, InputSpec], keys: Keys, draft: Draft) -> Findings:
    for name, given in inputs.items():
        here = (*keys, name)
        if message := wrong_name(name):
            yield Finding(here, message, at_key=True)
        for axis, size in enumerate(given.shape):
            if message := _wrong_size(size, draft):
                yield Finding((*here, "shape", axis), message)
        if given.dtype not in DTYPES:
            yield Finding((*here, "dtype"), _unknown_dtype(given.dtype))
        elif given.range is not None and (message := _wrong_range(given.range, given.dtype)):
            yield Finding((*here, "range"), message)
        elif given.range is None and given.dtype in _INTEGERS and DTYPES[given.dtype] > 1:
            yield Finding(
                here,
                f"an {given.dtype} input needs a `range`, such as 0..255: the smallest and the "
                "largest value that it is to be tested with",
            )


def wrong_name(name: str) -> str | None:
    """Why nothing in Python can be called that, or None."""
    if name.isidentifier() and not iskeyword(name):
        return None
    return f"expected a name that Python allows, got {name!r}"


def wrong_names(names: Iterable[str], keys: Keys) -> Findings:
    """A list of names, such as a method's outputs: valid, and each one once."""
    met: set[str] = set()
    for number, name in enumerate(names):
        if message := wrong_name(name):
            yield Finding((*keys, number), message)
        elif name in met:
            yield Finding((*keys, number), f"{name!r} is named twice")
        met.add(name)


def wrong_dim_name(name: str, draft: Draft) -> str | None:
    if name in draft.spec.dims or draft.lost("dims", name):
        return None
    return unknown("dim", name, draft.spec.dims)


def _unknown_dtype(name: str) -> str:
    plain = name.removeprefix("torch.").lower()
    plain = _OTHER_NAMES.get(plain, plain)
    if plain in DTYPES:
        return f"no dtype is called {name!r}; did you mean {plain!r}?"
    return f"no dtype is called {name!r}{nearest(name, DTYPES, shown=len(DTYPES))}"


def _wrong_size(size: int | str, draft: Draft) -> str | None:
    if isinstance(size, str):
        message = wrong_dim_name(size, draft)
        if message is not None and size in DTYPES:
            return f"{message}; a dtype goes beside the shape: {{shape: […], dtype: {size}}}"
        if message is not None and not size.isidentifier():
            return f"a size is a number, or the name of a dim; got {size!r}"
        return message
    if not 1 <= size <= LARGEST:
        return f"a size is between 1 and {LARGEST}, got {size}"
    return None


def _wrong_range(ends: tuple[int, int], dtype: str) -> str | None:
    if dtype not in _INTEGERS:
        return f"only integers have a range, and the dtype is {dtype}"
    low, high = ends
    if low > high:
        return f"the range ends at {high}, before it begins at {low}"
    bits = 8 * DTYPES[dtype]
    least = 0 if dtype in _UNSIGNED else -(2 ** (bits - 1))
    most = least + 2**bits - 1
    if low < least or high > most:
        return f"{dtype} holds {least}..{most}, got {low}..{high}"
    return None
