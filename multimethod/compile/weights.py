"""A module's tensors in the forms in which objects store them: as they are, in float32 where the
model keeps them in half precision, and with their axes in another order, as XNNPACK wants those of
convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch

from mmpack.multimethod.compile.describe import Describer, hash_bytes
from mmpack.multimethod.compile.widen import HALF

Key = tuple[str, str]
"""A tensor's name in its module, and a form: `as it is`, `float32`, each perhaps with an order of
axes behind it: `as it is 0231`."""

AS_IT_IS, FLOAT32 = "as it is", "float32"


class ModuleWeights:
    """See `link.rebind.Weights`. tensors: by their names in the module."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], describer: Describer) -> None:
        self._tensors = tensors
        self._describer = describer
        self._digests: dict[tuple[int, str], str] = {}

    def tensors(self) -> Sequence[Key]:
        return [(name, AS_IT_IS) for name in self._tensors]

    def find(self, digest: str, size: int) -> Sequence[Key]:
        """Tensors with these bytes. Other orders of axes are tried where nothing else fits."""
        plain = [key for key in self._forms() if self._size(key) == size]
        found = [key for key in plain if self.digest(key) == digest]
        if not found:
            turned = (other for key in plain for other in self._turned(key))
            found = [key for key in turned if self.digest(key) == digest]
        return found

    def digest(self, key: Key) -> str:
        name, form = key
        tensor = self._tensors[name]
        if form == AS_IT_IS:
            return self._describer.bytes(tensor)
        known = (id(tensor), form)
        if known not in self._digests:
            self._digests[known] = hash_bytes(self._formed(key))
        return self._digests[known]

    def tells(self, key: Key) -> bool:
        """Whether it has other numbers than 0, 1 and -1, which arithmetic may leave as they are,
        and no two orders of its axes give the same bytes."""
        tensor = self._formed(key)
        if tensor.dtype == torch.bool or not bool((tensor.abs() != tensor * tensor).any()):
            return False
        return all(
            not torch.equal(tensor.reshape(-1), tensor.permute(order).reshape(-1))
            for order in _orders(tensor)
        )

    def read(self, key: Key) -> bytes:
        flat = self._formed(key).contiguous().reshape(-1)
        if not flat.numel():
            return b""
        return flat.view(torch.uint8).numpy().data  # type: ignore[return-value]

    def _forms(self) -> list[Key]:
        half = [name for name, tensor in self._tensors.items() if tensor.dtype in HALF]
        return [*self.tensors(), *((name, FLOAT32) for name in half)]

    def _turned(self, key: Key) -> list[Key]:
        name, form = key
        orders = _orders(self._tensors[name])
        return [(name, f"{form} {''.join(map(str, order))}") for order in orders]

    def _size(self, key: Key) -> int:
        tensor = self._tensors[key[0]]
        return tensor.numel() * (4 if key[1] == FLOAT32 else tensor.element_size())

    def _formed(self, key: Key) -> torch.Tensor:
        name, form = key
        tensor = self._tensors[name].detach()
        if form.startswith(FLOAT32):
            tensor = tensor.float()
        order = form.removeprefix(FLOAT32).removeprefix(AS_IT_IS).strip()
        return tensor.permute([int(axis) for axis in order]) if order else tensor


def _orders(tensor: torch.Tensor) -> list[tuple[int, ...]]:
    """Orders of axes in which a tensor's numbers come one after the other in another order."""
    if tensor.dim() > 4:
        return []
    own = tuple(axis for axis, size in enumerate(tensor.shape) if size != 1)
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for order in itertools.permutations(range(tensor.dim())):
        found.setdefault(tuple(axis for axis in order if axis in own), order)
    found.pop(own, None)
    return list(found.values())
