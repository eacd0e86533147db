"""One call of one method, from texts to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.flow.program import load
from mmpack.multimethod.outputs import refuse_overwriting
from mmpack.multimethod.runtime.values import read_inputs
from mmpack.multimethod.scratch import replacing


def call_method(
    path: Path,
    method: str,
    inputs: Sequence[str],
    sizes: Mapping[str, int],
    output: Path | None = None,
    data: Path | None = None,
) -> str:
    """Run a method on inputs written as in `runtime/values.py` and describe what it gives.

    output: also write the outputs there, as safetensors by name. data: as of `load`.
    """
    if output is not None:
        others = [path] if data is None else [path, data]
        refuse_overwriting(output, [*others, *(text.partition("=")[2] for text in inputs)])
        if output.suffix != ".safetensors":
            raise OutputError(f"{output}: expected a name that ends with .safetensors")
    # One call does not pay for building another engine.
    program = load(path, engine="stock", data=data)
    signature = program.signature(method)
    ranges = program[method].ranges
    result = program.run_method(method, **read_inputs(signature, inputs, sizes, ranges))
    values = dict(zip(result._fields, result, strict=True))
    if output is not None:
        from safetensors.torch import save

        tensors = {n: v.contiguous() for n, v in values.items() if isinstance(v, torch.Tensor)}
        content = save(tensors)
        with replacing(output, len(content)) as fd, open(fd, "wb", closefd=False) as file:
            file.write(content)
    return "\n".join([str(signature), *(_describe(n, v) for n, v in values.items())])


def _describe(name: str, value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"{name} = {value!r}"
    kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.numel() <= 16:
        return f"{name}: {kind} = {value.tolist()}"
    numbers = value.double()
    return (
        f"{name}: {kind}, from {numbers.min():.6g} to {numbers.max():.6g}, "
        f"mean {numbers.mean():.6g}"
    )
