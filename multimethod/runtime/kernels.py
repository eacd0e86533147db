"""Kernels that the stock Python runtime has only once a library of ExecuTorch's has been loaded.

They come with the executorch wheel, in libraries of their own, which a program that calls none of
them should not pay for: so one is loaded for the first method that does. The Python modules beside
them load them too, but the one of `llama` imports a compiler of torch's, which takes 2 s.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch

from mmpack.multimethod.errors import ExecutionError
from mmpack.multimethod.stock_runtime import binding
from mmpack.multimethod.versions import requirement

LIBRARIES = {
    "llama": ("executorch.extension.llm.custom_ops", "*custom_ops_aot_lib.*"),
    "quantized_decomposed": ("executorch.kernels.quantized", "*quantized_ops_aot_lib.*"),
}
"""Namespace of operators -> the package in whose folder the library with their kernels is, and
what it is called. It registers the operators with torch, too."""

_EXAMPLES = {
    "llama": "llama::custom_sdpa.out",
    "quantized_decomposed": "quantized_decomposed::embedding_byte.out",
}
"""One of each that programs call."""


def has_kernels() -> dict[str, bool]:
    """Whether the library of each namespace of `LIBRARIES` brings it kernels. Loads them all."""
    return {name: not without_kernel([operator]) for name, operator in _EXAMPLES.items()}


def without_kernel(operators: Iterable[str]) -> list[str]:
    """Those of some operators of `LIBRARIES`, as in "llama::custom_sdpa.out", that this process
    still has no kernel for after their libraries have been loaded."""
    wanted = [name for name in operators if name.partition("::")[0] in LIBRARIES]
    missing = _missing(wanted)
    for namespace in dict.fromkeys(name.partition("::")[0] for name in missing):
        for library in _libraries(*LIBRARIES[namespace]):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            except OSError:
                continue  # then a kernel is still missing
    return _missing(missing)


def require_kernels(method: str, operators: Iterable[str]) -> None:
    """Bring the kernels of the operators that a method calls into this process.

    Raises ExecutionError, with what would change that, if one of them is not to be had.
    """
    if missing := without_kernel(operators):
        raise ExecutionError(
            f"{method}: this executorch has no kernel for {', '.join(missing)}, which "
            f"{LIBRARIES[missing[0].partition('::')[0]][1]} in it should bring; "
            f"pip install --force-reinstall --no-deps '{requirement('executorch')}'"
        )


def _missing(operators: Iterable[str]) -> list[str]:
    registered = set(binding()._get_operator_names())
    return [name for name in operators if name not in registered]


def _libraries(package: str, pattern: str) -> list[Path]:
    """Those of a package, which is not imported."""
    try:
        found = find_spec(package)
    except ImportError:  # of a package that it is in
        found = None
    folders = (found.submodule_search_locations if found is not None else None) or ()
    return [path for folder in folders for path in sorted(Path(folder).glob(pattern))]
