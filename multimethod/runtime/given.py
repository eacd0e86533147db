"""Tensors of the caller's that a method is to write its outputs into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, strided

from mmpack.multimethod.errors import CallError, counted
from mmpack.multimethod.signature import Signature, ValueSpec


class Given:
    """Checks what `out=` is given for one method, and fills what the engine has not."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    def accept(self, out: object, inputs: Sequence[Any]) -> list[Tensor | None]:
        """One tensor, or None, for each output. Raises CallError for what cannot be written into,
        or has a size that no result has."""
        outputs = self._signature.outputs
        listed = [out] if isinstance(out, Tensor) else out
        if not isinstance(listed, Sequence) or len(listed) != len(outputs):
            got = len(listed) if isinstance(listed, Sequence) else type(out).__name__
            raise CallError(
                f"{self._signature.method}: out: expected a tensor, or None, for each of "
                f"{counted(len(outputs), 'output')}, got {got}\n  {self._signature}"
            )
        for spec, tensor in zip(outputs, listed, strict=True):
            if tensor is not None:
                self._check(spec, tensor, [*inputs, *(t for t in listed if t is not tensor)])
        return list(listed)

    def fill(self, given: Sequence[Tensor | None], results: list[Any]) -> list[Any]:
        """Copies results that stand elsewhere to where they are wanted."""
        for number, (tensor, result) in enumerate(zip(given, results, strict=True)):
            if tensor is None or tensor is result:
                continue
            if tensor.shape != result.shape:
                spec = self._signature.outputs[number]
                raise self._error(f"expected {list(result.shape)}, got {list(tensor.shape)}", spec)
            results[number] = tensor.copy_(result)
        return results

    def _check(self, spec: ValueSpec, tensor: Any, others: Sequence[Any]) -> None:
        if spec.shape is None:
            raise self._error(f"is a Python {spec.dtype}, for which there is only None", spec)
        if type(tensor) is not Tensor:
            raise self._error(f"expected a plain tensor, got {type(tensor).__name__}", spec)
        if tensor.dtype is not getattr(torch, spec.dtype):
            got = str(tensor.dtype).removeprefix("torch.")
            raise self._error(f"expected dtype {spec.dtype}, got {got}", spec)
        if not tensor.is_cpu or tensor.layout is not strided or not tensor.is_contiguous():
            raise self._error("expected a dense, contiguous tensor on the CPU", spec)
        if tensor.requires_grad or tensor.is_neg():
            raise self._error("expected a tensor that can be written to as it is", spec)
        fits = len(spec.shape) == tensor.dim() and all(
            size == wanted
            if isinstance(wanted, int)
            else wanted not in self._signature.dims or self._signature.dims[wanted].admits(size)
            for wanted, size in zip(spec.shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = spec.show(self._signature.dims).partition(": ")[2]
            raise self._error(f"expected {wanted}, got {list(tensor.shape)}", spec)
        if any(isinstance(other, Tensor) and _overlap(tensor, other) for other in others):
            raise self._error("its memory is also that of an input, or of another output", spec)

    def _error(self, message: str, spec: ValueSpec) -> CallError:
        return CallError(
            f"{self._signature.method}: out: output {spec.name!r}: {message}\n  {self._signature}"
        )


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Of dense tensors."""
    starts = one.data_ptr(), other.data_ptr()
    return starts[0] < starts[1] + other.nbytes and starts[1] < starts[0] + one.nbytes
