"""The decoder in a folder, made by transformers, its weights mapped from the files.

transformers makes the model without memory for its weights and then puts in what the files hold,
as tensors that share the mapped file: a checkpoint takes no memory but the system's cache of files,
in the precision that it is kept in. It also knows what names older checkpoints have for weights,
which of them are tied, and the buffers that no file holds. No code of a checkpoint's is ever run.

Source: transformers 5.23, `modeling_utils.py` (`from_pretrained`), `core_model_loading.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from mmpack.multimethod.errors import ModelError, nearest
from mmpack.multimethod.huggingface.folder import (
    CONFIG,
    FLOATS,
    ModelFolder,
    missing_package,
    read_folder,
)

ATTENTION = "eager"
EXPERTS = "batched_mm"
"""The one of its ways to compute a mixture of experts whose operators ExecuTorch has, and whose
shapes do not depend on which expert takes which token."""
"""The one of transformers' ways to write attention that knows all that families add to it."""
IGNORED = ("inv_freq", "position_ids")
"""What older checkpoints hold and transformers computes itself."""
SHOWN = 20


def make_decoder(path: Path, seed: int = 0) -> Any:
    """The causal language model of a folder, its parameters as they are in the files, its buffers
    in float32; of a config.json alone, one with random weights in float32, drawn from `seed`.

    It has one more Python method, `logits(tokens)`: [B, S] int64 -> [B, S, vocabulary].

    Raises ModelError if the folder does not hold such a model, whole.
    """
    folder = read_folder(path)
    if message := missing_package():
        raise ModelError(message)
    with _quiet():
        config = _config(folder)
        model = _random(config, seed) if folder.tensors is None else _loaded(folder, config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.float()
    model.logits = MethodType(logits, model)
    return model.eval().requires_grad_(False)


def read_config(path: Path) -> Any:
    """transformers' own record of the configuration of a folder, or of a config.json alone.

    Raises ModelError if there is none, or it is of no decoder that transformers knows.
    """
    if message := missing_package():
        raise ModelError(message)
    with _quiet():
        return _config(read_folder(path))


def draw_decoder(config: Any, *, device: str = "cpu", seed: int = 0) -> Any:
    """A causal language model of a configuration, its weights random, in float32. On the device
    `meta` they take no memory."""
    with _quiet(), torch.device(device):
        return _random(config, seed).eval().requires_grad_(False)


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of whole texts, computed in one piece: [B, S] int64 -> [B, S, vocabulary]."""
    found: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return found


def _config(folder: ModelFolder) -> Any:
    """transformers' own record of the configuration. Raises ModelError if it knows no such decoder,
    or it is a part of something larger."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = folder.config["model_type"]
    if kind not in CONFIG_MAPPING:
        own = (
            "; it brings Python code of its own (`auto_map`), which mmpack never runs: a factory "
            "of yours can (`model: {factory: file.py:callable}`)"
            if "auto_map" in folder.config
            else nearest(str(kind), CONFIG_MAPPING)
        )
        raise ModelError(f"transformers knows no model_type {kind!r}{own}")
    given = {key: value for key, value in folder.config.items() if key != "auto_map"}
    with _told("transformers takes no such configuration"):
        config = CONFIG_MAPPING[kind].from_dict(given)
    if "text_config" in config.sub_configs:
        raise ModelError(
            f"a {kind!r} is more than a decoder of text; save the decoder in it alone, as a "
            f"{config.get_text_config().model_type!r}, and name that folder"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"a {kind!r} is no causal language model, as transformers knows it")
    return config


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What transformers raises of a configuration (of any type, since it does not look at it
    before it computes with it) is the configuration's fault."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"{CONFIG}: {what}: {type(error).__name__}: {error}") from error


def _random(config: Any, seed: int) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), _told("transformers makes no model of it"):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            experts_implementation=EXPERTS,
        )


def _loaded(folder: ModelFolder, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        str(folder.path),
        config=config,
        dtype=getattr(torch, folder.dtype),
        attn_implementation=ATTENTION,
        experts_implementation=EXPERTS,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are told below, with all else
        output_loading_info=True,
    )
    _require_all(folder, model, found)
    _keep_as_they_are(folder, model)
    return model


def _keep_as_they_are(folder: ModelFolder, model: Any) -> None:
    """transformers gives a model one dtype. What is in the files in another is put back as it is,
    so that nothing is rounded: norms in float32, say, among weights in half precision.

    Raises ModelError for a tensor that has another name in the model, or is a part of one.
    """
    odd = {
        name: held
        for name, held in (folder.tensors or {}).items()
        if held.dtype in FLOATS and FLOATS[held.dtype] != folder.dtype
    }
    for name, held in odd.items():
        path, _, own = name.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            module = None
        if module is None or own not in (*module._parameters, *module._buffers):
            if name.endswith(IGNORED):
                continue
            raise ModelError(
                f"{folder.path / held.file}: {name!r} is {FLOATS[held.dtype]}, most of the weights "
                f"are {folder.dtype}, and the model has no tensor of that name to keep it in; "
                "write the checkpoint in one dtype"
            )
        with safe_open(folder.path / held.file, framework="pt") as file:
            tensor = file.get_tensor(name)
        if own in module._parameters:
            module._parameters[own] = nn.Parameter(tensor)
        else:
            module._buffers[own] = tensor
    if odd:
        model.tie_weights()


def _require_all(folder: ModelFolder, model: nn.Module, found: Any) -> None:
    """Raise ModelError unless files and model fit."""
    held, wanted = folder.tensors or {}, model.state_dict()
    problems = [f"missing key {key!r}{nearest(key, held)}" for key in found["missing_keys"]]
    problems += [
        f"unexpected key {key!r}{nearest(key, wanted)}" for key in found["unexpected_keys"]
    ]
    problems += [
        f"{key!r} has shape {list(given)}, the model wants {list(expected)}"
        for key, given, expected in found["mismatched_keys"]
    ]
    problems += [str(error) for error in found.get("error_msgs", ())]
    if problems:
        shown = "\n  ".join(sorted(problems)[:SHOWN])
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ModelError(f"the weights do not fit the model:\n  {shown}{more}")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers shows a bar and reports at length; what matters of that is raised here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
