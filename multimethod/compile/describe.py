"""Values as plain data: equal for equal values, different for different ones, without addresses.

What a module computes depends on its attributes, so everything that can be one is looked into:
configurations, functions with what they close over, arrays, even modules in a plain list.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import nn

from mmpack.multimethod.compile.imports import plain_name

DEEPEST = 16
"""Levels of nesting that are looked into."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_BOOKKEEPING = frozenset(vars(nn.Module()))
"""What nn.Module itself keeps in every instance: its tables of parameters, hooks, and so on."""

_CLASS_BOOKKEEPING = frozenset({"__module__", "__doc__", "__dict__", "__weakref__"})
_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, torch.Tensor, numpy.ndarray)


class Describer:
    """Describes values; remembers the hash of every tensor, so shared weights are read once."""

    def __init__(self) -> None:
        self._bytes: dict[int, tuple[torch.Tensor, str]] = {}
        self._names: dict[int, str] = {}

    def tensor(self, tensor: torch.Tensor) -> str:
        """sha256 of a tensor's dtype, shape and values."""
        return _of_kind(tensor, self.bytes(tensor))

    def bytes(self, tensor: torch.Tensor) -> str:
        """sha256 of a tensor's values as they lie in memory when it is contiguous."""
        if id(tensor) not in self._bytes:
            self._bytes[id(tensor)] = (tensor, hash_bytes(tensor))
        return self._bytes[id(tensor)][1]

    def leave(self) -> None:
        """What is described next is not inside of the last tree."""
        self._names = {}

    def tree(self, root: nn.Module) -> Any:
        """A module and all below it: their classes, attributes and hooks, without tensors."""
        modules = dict(root.named_modules())
        self._names = {id(module): name for name, module in modules.items()}
        return [[name, self._attributes(module, ())] for name, module in modules.items()]

    def _attributes(self, module: nn.Module, path: tuple[int, ...]) -> Any:
        own = {k: v for k, v in vars(module).items() if k not in _BOOKKEEPING}
        hooks = [list(getattr(module, name).values()) for name in _HOOKS]
        # A class that a factory defines may close over the factory's arguments.
        local = [c for c in type(module).__mro__ if "<locals>" in c.__qualname__]
        return [
            _class_name(type(module)),
            self._named(own, path),
            self.value(hooks, path),
            [self._class_code(kind) for kind in local],
        ]

    def value(self, value: Any, path: tuple[int, ...] = ()) -> Any:
        """`path` holds the ids of what the value is inside of."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return repr(value)
        if id(value) in path or len(path) == DEEPEST:
            return type(value).__qualname__
        path = (*path, id(value))
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if isinstance(value, type):
            return _class_name(value)
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, enum.Enum):
            return str(value)
        if isinstance(value, (torch.dtype, torch.device, bytes, Path)):
            return str(value)
        if isinstance(value, numpy.ndarray) and value.dtype != object:
            content = hashlib.sha256(numpy.ascontiguousarray(value).tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), content]
        if isinstance(value, (list, tuple)):
            return [type(value).__name__, *(self.value(item, path) for item in value)]
        if isinstance(value, (set, frozenset)):
            return sorted(repr(self.value(item, path)) for item in value)
        if isinstance(value, Mapping):
            return [type(value).__name__, self._named(value, path)]
        if isinstance(value, nn.Module):
            name = self._names.get(id(value))
            return ["module", name] if name is not None else self._loose_module(value, path)
        if isinstance(value, FunctionType):
            return self._function(value, path)
        if isinstance(value, MethodType):
            return [self.value(value.__func__, path), self.value(value.__self__, path)]
        if isinstance(value, functools.partial):
            return self.value([value.func, value.args, value.keywords], path)
        return self._object(value, path)

    def _named(self, values: Mapping[Any, Any], path: tuple[int, ...]) -> list[list[Any]]:
        return [[self.value(k, path), self.value(v, path)] for k, v in values.items()]

    def _loose_module(self, module: nn.Module, path: tuple[int, ...]) -> Any:
        """A module that is no registered child, so that nothing else looks into it."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        inside = {name: self._attributes(m, path) for name, m in module.named_modules()}
        return [inside, {name: self.tensor(t) for name, t in tensors.items()}]

    def module_code(self, module: ModuleType) -> Any:
        """What a Python module holds by itself: its functions, its classes' attributes, and its
        plain values. This is what runs, whatever its file may say by now."""
        told: list[Any] = []
        for name, thing in sorted(vars(module).items()):
            if isinstance(thing, type):
                if thing.__module__ == module.__name__:
                    told.append([name, self._class_code(thing)])
            elif isinstance(thing, FunctionType):
                if thing.__module__ == module.__name__:
                    told.append([name, self.value(thing)])
            elif isinstance(thing, _PLAIN) and not name.startswith("__"):
                told.append([name, self.value(thing)])
        return told

    def _class_code(self, kind: type) -> Any:
        own = {k: v for k, v in vars(kind).items() if k not in _CLASS_BOOKKEEPING}
        inside = []
        for name, thing in own.items():
            if isinstance(thing, (staticmethod, classmethod)):
                thing = thing.__func__
            functions = [thing]
            if isinstance(thing, property):
                functions = [thing.fget, thing.fset, thing.fdel]
            kept = [f for f in functions if isinstance(f, (FunctionType, *_PLAIN))]
            inside.append([name, self.value(kept)])
        return [[_class_name(base) for base in kind.__bases__], inside]

    def _function(self, function: FunctionType, path: tuple[int, ...]) -> Any:
        """Its code, and the values that it brings along: defaults and what it closes over."""
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not filled yet
                cells.append(None)
        return [
            function.__qualname__,
            _code(function.__code__),
            self.value([function.__defaults__, function.__kwdefaults__, cells], path),
        ]

    def _object(self, value: Any, path: tuple[int, ...]) -> Any:
        name = _class_name(type(value))
        slots = [s for c in type(value).__mro__ for s in _slots(c)]
        inside = {s: getattr(value, s) for s in slots if hasattr(value, s)}
        inside.update(getattr(value, "__dict__", {}))
        if inside:
            return [name, self._named(inside, path)]
        if callable(value):
            return [name, str(getattr(value, "__qualname__", ""))]
        try:
            return [name, hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()]
        except Exception:  # what cannot be pickled says nothing but its type
            return name


def hash_tensor(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's dtype, shape and values."""
    return _of_kind(tensor, hash_bytes(tensor))


def hash_bytes(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's values as they lie in memory when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return hashlib.sha256(data).hexdigest()


def _of_kind(tensor: torch.Tensor, content: str) -> str:
    kind = f"{tensor.dtype}{list(tensor.shape)}{content}"
    return hashlib.sha256(kind.encode()).hexdigest()


def _class_name(kind: type) -> str:
    return f"{plain_name(kind.__module__)}.{kind.__qualname__}"


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(n for n in names if n not in ("__weakref__", "__dict__"))


def _code(code: CodeType) -> str:
    """Hash of compiled code without its place in a file."""
    parts: list[Any] = [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars]
    parts += [_constant(constant) for constant in code.co_consts]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _constant(constant: Any) -> str:
    if isinstance(constant, CodeType):
        return _code(constant)
    # The order of a set is another one in every process.
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
