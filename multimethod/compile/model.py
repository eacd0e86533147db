"""The model of a spec: factory called, weights loaded strictly, submodules and wrappers found."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from mmpack.multimethod.errors import ModelError, nearest
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys
from mmpack.multimethod.spec.records import MethodSpec


def load_model(spec_file: SpecFile) -> nn.Module:
    """Make the model that the spec names, in eval mode, with its weights.

    Raises ModelError, with the spec's line, if the factory cannot be imported or called, returns
    no module, or if the weights do not fit (missing and unexpected keys, shapes, dtypes).
    """
    model_spec = spec_file.spec.model
    factory = resolve(spec_file, model_spec.factory, ("model", "factory"))
    try:
        model = factory(**model_spec.args)
    except Exception as error:
        raise model_error(
            spec_file,
            ("model", "factory"),
            f"calling {model_spec.factory} failed: {type(error).__name__}: {error}",
        ) from error
    if not isinstance(model, nn.Module):
        raise model_error(
            spec_file,
            ("model", "factory"),
            f"{model_spec.factory} returned {type(model).__name__}, expected a torch.nn.Module",
        )
    if model_spec.weights is not None:
        _load_weights(spec_file, model, spec_file.folder / model_spec.weights)
    return model.eval().requires_grad_(False)


def submodule(spec_file: SpecFile, model: nn.Module, method: str, spec: MethodSpec) -> nn.Module:
    """The submodule that a method is made from ("" and "." are the model itself)."""
    if spec.module in ("", "."):
        return model
    try:
        return model.get_submodule(spec.module)
    except AttributeError as error:
        known = [name for name, _ in model.named_modules() if name]
        raise model_error(
            spec_file,
            ("methods", method, "module"),
            f"the model has no module {spec.module!r};{nearest(spec.module, known)}",
        ) from error


def wrapper_class(spec_file: SpecFile, method: str, reference: str) -> Callable[..., nn.Module]:
    """The wrapper that a method names: from `mmpack.wrappers`, or from the user's own file."""
    if ":" in reference:
        return resolve(spec_file, reference, ("methods", method, "wrapper"))
    package = importlib.import_module("mmpack.wrappers")
    return package.find(reference)  # type: ignore[no-any-return]


def resolve(spec_file: SpecFile, reference: str, where: Keys) -> Callable[..., Any]:
    """The callable behind `package.module:name` or `file.py:name` (relative to the spec)."""
    place, _, name = reference.partition(":")
    try:
        with _importable(spec_file.folder):
            if place.endswith(".py"):
                module = _module_of_file(spec_file.folder / place)
            else:
                module = importlib.import_module(place)
    except Exception as error:
        message = f"importing {place} failed: {type(error).__name__}: {error}"
        raise model_error(spec_file, where, message) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            message = f"{place} has no {name!r};{nearest(name, dir(module))}"
            raise model_error(spec_file, where, message)
        found = getattr(found, part)
    if not callable(found):
        message = f"{reference} is a {type(found).__name__}, not a callable"
        raise model_error(spec_file, where, message)
    return found  # type: ignore[no-any-return]


def state_names(model: nn.Module) -> dict[int, str]:
    """id(tensor) -> its first fully qualified name, for every parameter and buffer."""
    names: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(id(tensor), name)
    return names


def _load_weights(spec_file: SpecFile, model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = ("model", "weights")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise model_error(spec_file, where, f"{path} cannot be read: {error}") from error
    wanted = model.state_dict()
    missing, unexpected = wanted.keys() - weights, weights.keys() - wanted
    problems = [f"missing key {key!r};{nearest(key, weights)}" for key in missing]
    problems += [f"unexpected key {key!r};{nearest(key, wanted)}" for key in unexpected]
    problems += [
        f"{key!r} has shape {list(weights[key].shape)}, the model wants {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise model_error(spec_file, where, f"{path.name} does not fit the model:\n  {shown}{more}")
    model.load_state_dict(weights)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A user's file may import its neighbours, as it could when run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _module_of_file(path: Path) -> ModuleType:
    """The module of a Python file, imported once for each content that it has."""
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    name = f"_mmpack_{path.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def forward_names(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names of a callable's parameters in order, or None if it takes anything (`*args`)."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return None
    return tuple(p.name for p in parameters)


def model_error(spec_file: SpecFile, where: Keys, message: str) -> ModelError:
    return ModelError(str(spec_file.mistake(where, message)))
