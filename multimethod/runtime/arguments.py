"""A signature held against the arguments of a call, before ExecuTorch sees them.

The stock runtime checks only that a dynamic tensor has not too many elements, and answers a wrong
call with a bare number. Here every mistake is one CallError that names the method, the input, the
dim, what was expected and what came. A right call costs next to nothing: what inputs that were
accepted once looked like is remembered (`looks.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, strided

from mmpack.multimethod.errors import CallError, counted, nearest
from mmpack.multimethod.runtime.looks import Looks, looks
from mmpack.multimethod.signature import Signature, ValueSpec

_SCALARS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
}


class Arguments:
    """Checks the arguments of one method. `accept(args, kwargs)` returns them in call order.

    channels_last: positions of inputs whose memory the method takes to be laid out so. seen: what
    remembers inputs that were accepted.

    known(args): whether inputs in call order need no examination, as those of an earlier call. It
    never says so of what is not to be taken as it is; `accept` asks it too.
    """

    def __init__(
        self,
        signature: Signature,
        channels_last: Collection[int] = (),
        seen: Looks | None = None,
    ) -> None:
        self.signature = signature
        self._names = tuple(value.name for value in signature.inputs)
        self._count = len(self._names)
        self._formats = tuple(
            _format(v, i in channels_last) for i, v in enumerate(signature.inputs)
        )
        self._fast = not channels_last and all(v.shape is not None for v in signature.inputs)
        seen = seen or looks()
        self.known = seen.known
        self._remember = seen.remember

    def accept(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """The inputs in call order, laid out as the method wants them. Raises CallError for
        anything that the signature does not admit."""
        if kwargs or len(args) != self._count:
            args = self._bind(args, kwargs)
        return args if self.known(args) else self._examine(args)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Arguments by position and by name, in call order."""
        if len(args) + len(kwargs) == self._count:
            try:
                return [*args, *map(kwargs.__getitem__, self._names[len(args) :])]
            except KeyError:
                pass  # said in words below
        if len(args) > self._count:
            raise self._error(f"takes {counted(self._count, 'input')}, got {len(args)}")
        bound = dict(zip(self._names, args, strict=False))
        for name, value in kwargs.items():
            if name not in self._names:
                raise self._error(f"has no input {name!r}{nearest(name, self._names)}")
            if name in bound:
                raise self._error(f"input {name!r} was given twice")
            bound[name] = value
        missing = [name for name in self._names if name not in bound]
        if missing:
            raise self._error(
                f"takes {counted(self._count, 'input')}, got {len(bound)}: "
                f"missing {', '.join(map(repr, missing))}"
            )
        return [bound[name] for name in self._names]

    def _examine(self, args: Sequence[Any]) -> list[Any]:
        """Every check, one after the other, with a message for each."""
        sizes: dict[str, tuple[int, str]] = {}
        checked: list[Any] = []
        for spec, value, layout in zip(self.signature.inputs, args, self._formats, strict=True):
            if spec.shape is None:
                checked.append(self._scalar(spec, value))
                continue
            if not isinstance(value, Tensor):
                got = type(value).__name__
                raise self._error(f"expected a tensor of {spec.dtype}, got {got}", spec)
            if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
                raise self._error(f"expected a plain tensor, got {type(value).__name__}", spec)
            if value.dtype is not getattr(torch, spec.dtype):
                got = str(value.dtype).removeprefix("torch.")
                raise self._error(f"expected dtype {spec.dtype}, got {got}", spec)
            if not value.is_cpu:
                raise self._error(f"expected a tensor on the CPU, got one on {value.device}", spec)
            if value.layout is not strided or value.is_nested:
                got = "a nested one" if value.is_nested else str(value.layout)
                raise self._error(f"expected a dense tensor, got {got}", spec)
            self._shape(spec, value.shape, sizes)
            if type(value) is not Tensor:  # a Parameter: the runtime takes none
                value = value.detach().as_subclass(Tensor)
            checked.append(value.resolve_neg().contiguous(memory_format=layout))
        if self._fast:
            self._remember(checked)
        return checked

    def _scalar(self, spec: ValueSpec, value: Any) -> Any:
        right = isinstance(value, _SCALARS.get(spec.dtype, (object,)))
        if not right or (isinstance(value, bool) and spec.dtype in ("int", "float")):
            raise self._error(f"expected {spec.dtype}, got {type(value).__name__}", spec)
        return float(value) if spec.dtype == "float" else value  # the runtime converts nothing

    def _shape(self, spec: ValueSpec, shape: torch.Size, sizes: dict[str, tuple[int, str]]) -> None:
        """Rank, fixed sizes, and dims: in range, on step, and the same in all inputs. `sizes` is
        what the inputs before this one said: dim -> size and input."""
        assert spec.shape is not None
        got = list(shape)
        if len(spec.shape) != len(got):
            raise self._error(
                f"expected {counted(len(spec.shape), 'axis', 'axes')}, "
                f"{spec.show(self.signature.dims).partition(': ')[2]}, got {len(got)}: {got}",
                spec,
            )
        for axis, (wanted, size) in enumerate(zip(spec.shape, got, strict=True)):
            if isinstance(wanted, int):
                if size != wanted:
                    raise self._error(f"axis {axis}: expected {wanted}, got {size}", spec)
                continue
            dim = self.signature.dims[wanted]
            where = f"axis {axis} (dim {wanted!r})"
            if dim.fixed and size != dim.min:
                raise self._error(f"{where}: expected {dim.min}, got {size}", spec)
            if not dim.min <= size <= dim.max:
                raise self._error(f"{where}: expected {dim.min} to {dim.max}, got {size}", spec)
            if not dim.admits(size):
                raise self._error(f"{where}: expected a multiple of {dim.step}, got {size}", spec)
            before = sizes.setdefault(wanted, (size, spec.name))
            if before[0] != size:
                raise self._error(
                    f"{where}: expected {before[0]} as in input {before[1]!r}, got {size}", spec
                )

    def _error(self, message: str, spec: ValueSpec | None = None) -> CallError:
        where = f"input {spec.name!r}: " if spec is not None else ""
        return CallError(f"{self.signature.method}: {where}{message}\n  {self.signature}")


def _format(value: ValueSpec, channels_last: bool) -> torch.memory_format:
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if len(value.shape or ()) == 4 else torch.channels_last_3d
