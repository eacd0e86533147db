"""A unit's content as one hash: equal hashes mean that compiling again would give the same object.

What goes in: the code of the module's classes and of the user's files that they use, every plain
attribute of every submodule, every weight, the inputs and dims, the target, and the versions of
mmpack, torch, executorch and Python. Nothing of it needs torch.export, so a build in which
nothing changed exports nothing.
"""

from __future__ import annotations

import enum
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import nn

from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.versions import installed

OWN_CODE = ("compile/export.py", "compile/lower.py", "compile/unit.py", "targets/*.py")
"""The files of mmpack that decide what an object looks like."""


class Fingerprints:
    """Hashes units; remembers the hash of every tensor, so shared weights are read once."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._tensors: dict[int, str] = {}

    def of(self, unit: Unit) -> str:
        """The unit's fingerprint, 64 hexadecimal digits."""
        modules = {name: _describe_module(m) for name, m in unit.module.named_modules()}
        content = {
            "method": unit.name,
            "call": [unit.module.call, unit.module.names],
            "inputs": [attrs.asdict(value) for value in unit.inputs],
            "dims": {name: attrs.asdict(dim) for name, dim in unit.dims.items()},
            "outputs": list(unit.spec.outputs),
            "target": [unit.backend, dict(unit.options)],
            "modules": modules,
            "tensors": self._state(unit.module),
            "code": _code(type(m) for m in unit.module.modules()),
            "versions": _versions(),
        }
        return digest(content)

    def _state(self, module: nn.Module) -> dict[str, list[str]]:
        return {
            name: [self._names.get(id(tensor), ""), self._tensor(tensor)]
            for name, tensor in [
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            ]
        }

    def _tensor(self, tensor: torch.Tensor) -> str:
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = hash_tensor(tensor)
        return self._tensors[id(tensor)]


def digest(value: Any) -> str:
    """sha256 of plain data, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_tensor(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's dtype, shape and values."""
    flat = tensor.detach().contiguous().reshape(-1)
    state = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    if flat.numel():
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def _describe_module(module: nn.Module) -> Any:
    own = {k: describe(v) for k, v in sorted(vars(module).items()) if k not in _BOOKKEEPING}
    return [f"{type(module).__module__}.{type(module).__qualname__}", own]


_BOOKKEEPING = frozenset(vars(nn.Module()))
"""What nn.Module itself keeps in every instance: its tables of parameters, hooks, and so on."""


def describe(value: Any, depth: int = 6) -> Any:
    """A value as plain data that is equal for equal values and holds no addresses."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if not isinstance(value, float) else repr(value)
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, torch.Tensor):
        return hash_tensor(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(describe(item, depth - 1) for item in value)]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(describe(item, depth - 1), sort_keys=True) for item in value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (torch.dtype, torch.device, torch.Size, bytes, Path)):
        return str(value)
    if isinstance(value, nn.Module):
        return type(value).__qualname__  # described on its own
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    inside = getattr(value, "__dict__", None) or {
        name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ())
    }
    return [
        type(value).__qualname__,
        {k: describe(v, depth - 1) for k, v in sorted(inside.items()) if k != "__weakref__"},
    ]


def _code(classes: Iterable[type]) -> list[list[str]]:
    """Name and content hash of every source file that the classes' code can reach: their own
    files, and, from files that are not installed packages, the modules that these import."""
    seen: dict[str, str] = {}
    waiting = [name for c in classes for name in (b.__module__ for b in c.__mro__)]
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if name in seen or module is None or path is None or not path.endswith(".py"):
            continue
        if _is_foundation(name, path):
            continue
        seen[name] = hash_file(path)
        if not _is_installed(path):
            waiting.extend(_used_modules(module))
    return sorted([name, content] for name, content in seen.items())


def _used_modules(module: ModuleType) -> set[str]:
    used = set()
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            used.add(value.__name__)
        elif isinstance(getattr(value, "__module__", None), str):
            used.add(value.__module__)
    return used


def _is_foundation(name: str, path: str) -> bool:
    """Python's own library, and packages whose version is hashed instead."""
    if name.partition(".")[0] in ("torch", "executorch", "numpy"):
        return True
    if name.startswith("mmpack.multimethod"):
        return True  # see OWN_CODE
    return path.startswith(sysconfig.get_paths()["stdlib"]) and not _is_installed(path)


def _is_installed(path: str) -> bool:
    return "site-packages" in Path(path).parts or "dist-packages" in Path(path).parts


@cache
def _hash_file(path: str, modified: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hash_file(path: str | Path) -> str:
    """sha256 of a file's content, read again only when its time or size has changed."""
    stat = Path(path).stat()
    return _hash_file(str(path), stat.st_mtime_ns, stat.st_size)


@cache
def _versions() -> dict[str, Any]:
    here = Path(__file__).parent.parent
    own = [path for pattern in OWN_CODE for path in sorted(here.glob(pattern))]
    return {
        "python": list(sys.version_info[:2]),
        "torch": torch.__version__,
        "executorch": installed("executorch"),
        "mmpack": [[path.name, hash_file(path)] for path in own],
    }
