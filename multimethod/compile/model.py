"""The model of a spec: its factory called and its weights loaded strictly, or its Hugging Face
folder read; submodules and wrappers found."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmpack.multimethod.compile.imports import module_of_file
from mmpack.multimethod.compile.users_code import users_code
from mmpack.multimethod.compile.widen import compute_in_float32
from mmpack.multimethod.errors import ModelError, nearest
from mmpack.multimethod.spec import SpecFile
from mmpack.multimethod.spec.mistakes import Keys
from mmpack.multimethod.spec.records import MethodSpec


def load_model(spec_file: SpecFile) -> nn.Module:
    """Make the model that the spec names, in eval mode, with its weights.

    Raises ModelError, with the spec's line, if the factory cannot be imported or called, returns
    no module, or if the weights do not fit (missing and unexpected keys, shapes, dtypes).
    """
    model = make_model(spec_file)
    load_weights(spec_file, model)
    return model


def make_model(spec_file: SpecFile) -> nn.Module:
    """The model as its factory makes it, or out of a Hugging Face folder; in eval mode."""
    model_spec = spec_file.spec.model
    if model_spec.factory is None:
        return _out_of_folder(spec_file, str(model_spec.huggingface), model_spec.seed)
    where = ("model", "factory")
    factory = resolve(spec_file, model_spec.factory, where)
    with users_code(spec_file, where, f"calling {model_spec.factory}"):
        model = factory(**model_spec.args)
    if not isinstance(model, nn.Module):
        message = f"{model_spec.factory} returned {a_value(model)}, expected a torch.nn.Module"
        raise model_error(spec_file, where, message)
    _require_plain(spec_file, model)
    return model.eval().requires_grad_(False)


def _out_of_folder(spec_file: SpecFile, name: str, seed: int) -> nn.Module:
    from mmpack.multimethod.huggingface.model import make_decoder

    where = ("model", "huggingface")
    with users_code(spec_file, where, f"making the model of {name}"):
        try:
            model: nn.Module = make_decoder(spec_file.folder / name, seed)
        except ModelError as error:
            raise model_error(spec_file, where, str(error)) from error
    compute_in_float32(model)
    return model


def load_weights(spec_file: SpecFile, model: nn.Module) -> None:
    """Fill the model with the spec's weights, if it names any."""
    name = spec_file.spec.model.weights
    if name is not None:
        _load_weights(spec_file, model, spec_file.folder / name)


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
            f"the model has no module {spec.module!r}{nearest(spec.module, known)}",
        ) from error


def wrapper_class(spec_file: SpecFile, method: str, reference: str) -> Callable[..., nn.Module]:
    """The wrapper that a method names: from `mmpack.wrappers`, or from the user's own file."""
    if ":" in reference:
        return resolve(spec_file, reference, ("methods", method, "wrapper"))
    package = importlib.import_module("mmpack.wrappers")
    try:
        return package.find(reference)  # type: ignore[no-any-return]
    except ModelError as error:
        raise model_error(spec_file, ("methods", method, "wrapper"), str(error)) from error


def resolve(spec_file: SpecFile, reference: str, where: Keys) -> Callable[..., Any]:
    """The callable behind `package.module:name` or `file.py:name` (relative to the spec)."""
    place, _, name = reference.partition(":")
    with users_code(spec_file, where, f"importing {place}"):
        if place.endswith(".py"):
            module = module_of_file(spec_file.folder / place)
        else:
            module = importlib.import_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            message = f"{place} has no {name!r}{nearest(name, dir(module))}"
            raise model_error(spec_file, where, message)
        found = getattr(found, part)
    if not callable(found):
        message = f"{reference} is {a_value(found)}, not a callable"
        raise model_error(spec_file, where, message)
    return found  # type: ignore[no-any-return]


def python_method(
    spec_file: SpecFile, method: str, module: nn.Module, call: str
) -> Callable[..., Any]:
    """The Python method of a module that a method of the spec calls."""
    found = getattr(module, call, None)
    if call == "forward" and _is_mere_container(module):
        below = ", ".join(n for n, _ in module.named_children())
        message = f"{type(module).__name__} has no forward; name one of its modules: {below}"
        raise model_error(spec_file, ("methods", method, "module"), message)
    if not callable(found):
        known = [n for n in dir(type(module)) if not n.startswith("_") and n not in dir(nn.Module)]
        known += [] if _is_mere_container(module) else ["forward"]
        raise model_error(
            spec_file,
            ("methods", method, "call"),
            f"{type(module).__name__} has no method {call!r}{nearest(call, known)}",
        )
    return found  # type: ignore[no-any-return]


def _is_mere_container(module: nn.Module) -> bool:
    """Whether it only holds modules, like nn.ModuleList, and cannot be called."""
    return type(module).forward is nn.Module.forward and "forward" not in vars(module)


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
    wanted = model.state_dict(keep_vars=True)
    twins = _twins(wanted)
    missing = [k for k in wanted if k not in weights and not twins[k] & weights.keys()]
    problems = [f"missing key {key!r}{nearest(key, weights)}" for key in missing]
    problems += [
        f"unexpected key {key!r}{nearest(key, wanted)}" for key in weights.keys() - wanted.keys()
    ]
    for key in wanted.keys() & weights.keys():
        problems += _misfits(key, weights, wanted[key], twins[key])
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise model_error(spec_file, where, f"{path.name} does not fit the model:\n  {shown}{more}")
    for key in wanted.keys() - weights.keys():
        weights[key] = weights[min(twins[key] & weights.keys())]
    model.load_state_dict(weights)


def _twins(wanted: Mapping[str, Any]) -> dict[str, set[str]]:
    """Key -> the keys of the very same tensor. A file holds tied weights under one name only."""
    by_tensor: dict[int, set[str]] = {}
    for key, tensor in wanted.items():
        by_tensor.setdefault(id(tensor), set()).add(key)
    return {key: by_tensor[id(tensor)] for key, tensor in wanted.items()}


def _misfits(
    key: str, weights: Mapping[str, torch.Tensor], wanted: torch.Tensor, twins: set[str]
) -> list[str]:
    given = weights[key]
    if given.shape != wanted.shape:
        return [f"{key!r} has shape {list(given.shape)}, the model wants {list(wanted.shape)}"]
    if given.dtype != wanted.dtype:
        return [f"{key!r} has dtype {_name(given)}, the model wants {_name(wanted)}"]
    return [
        f"{key!r} and {twin!r} are one tensor in the model, and differ in the file"
        for twin in twins & weights.keys()
        if key < twin and not torch.equal(given, weights[twin])
    ]


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _require_plain(spec_file: SpecFile, model: nn.Module) -> None:
    """Weights must be there, on the CPU, to be compiled."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise model_error(
                spec_file,
                ("model", "factory"),
                f"{name!r} is on the device {str(tensor.device)!r}, expected the CPU",
            )


def a_value(value: object) -> str:
    """`an int`, `a list`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def model_error(spec_file: SpecFile, where: Keys, message: str) -> ModelError:
    return ModelError(str(spec_file.mistake(where, message)))
