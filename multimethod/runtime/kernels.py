"""Kernels that the stock Python runtime has only once a module of ExecuTorch's has been imported.

They come with the executorch wheel, in libraries of their own. A program that calls none of them
should not pay for the import (which takes up to some seconds), so it is done for the first method
that does.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from mmpack.multimethod.errors import ExecutionError
from mmpack.multimethod.versions import requirement

MODULES = {
    "llama": "executorch.extension.llm.custom_ops.custom_ops",
    "quantized_decomposed": "executorch.kernels.quantized",
}
"""Namespace of operators -> the module whose import registers their kernels."""

_EXAMPLES = {
    "llama": "llama::custom_sdpa.out",
    "quantized_decomposed": "quantized_decomposed::embedding_byte.out",
}
"""One of each that programs call."""


def has_kernels() -> dict[str, bool]:
    """Whether importing the module of each namespace of `MODULES` brings it kernels. Takes as long
    as importing them all."""
    return {name: not without_kernel([operator]) for name, operator in _EXAMPLES.items()}


def without_kernel(operators: Iterable[str]) -> list[str]:
    """Those of some operators of `MODULES`, as in "llama::custom_sdpa.out", that this process still
    has no kernel for after their modules have been imported."""
    wanted = [name for name in operators if name.partition("::")[0] in MODULES]
    missing = _missing(wanted)
    for namespace in dict.fromkeys(name.partition("::")[0] for name in missing):
        try:
            importlib.import_module(MODULES[namespace])
        except (ImportError, OSError, AssertionError):
            continue  # then a kernel is still missing
    return _missing(missing)


def require_kernels(method: str, operators: Iterable[str]) -> None:
    """Bring the kernels of the operators that a method calls into this process.

    Raises ExecutionError, with what would change that, if one of them is not to be had.
    """
    if missing := without_kernel(operators):
        raise ExecutionError(
            f"{method}: this executorch has no kernel for {', '.join(missing)}, which importing "
            f"{MODULES[missing[0].partition('::')[0]]} should bring; "
            f"pip install --force-reinstall --no-deps '{requirement('executorch')}'"
        )


def _missing(operators: Iterable[str]) -> list[str]:
    # Here, since importing it makes remarks.
    from executorch.extension.pybindings.portable_lib import _get_operator_names

    registered = set(_get_operator_names())
    return [name for name in operators if name not in registered]
