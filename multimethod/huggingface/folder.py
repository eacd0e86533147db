"""What lies in a model's folder: its configuration, and the headers of its safetensors files.

    folder = read_folder(Path("smollm2"))
    folder.config["model_type"], folder.tensors["lm_head.weight"].shape

Neither torch nor transformers is imported, and of the weights only the headers are read, so that
`mmpack check` answers at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attrs import frozen

from mmpack.multimethod.errors import ModelError, nearest

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
TEXT = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION)
"""What a folder may hold besides for whoever turns text into tokens and back."""

FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""dtypes of safetensors that weights may have here, and what torch calls them."""

EXTRA = "pip install 'mmpack[hf]'"
"""Installs what only language models need."""


@frozen
class Held:
    """A tensor of a file, as its header describes it."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """What it takes, if it is one of `FLOATS`."""
        return math.prod(self.shape) * int(self.dtype.lstrip("BF"))


@frozen
class ModelFolder:
    """path: the folder. config: what config.json says. tensors: name -> where it is; None if there
    are to be no weights but random ones, since the configuration alone was named. tokenizer: names
    of the files beside it that have to do with text."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Held] | None
    tokenizer: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The files with weights, in the order of their names."""
        return tuple(sorted({held.file for held in (self.tensors or {}).values()}))

    @property
    def dtype(self) -> str:
        """What most of the weights are kept in, by torch's name."""
        sizes: dict[str, int] = {}
        for held in (self.tensors or {}).values():
            if held.dtype in FLOATS:
                sizes[held.dtype] = sizes.get(held.dtype, 0) + held.bits
        return FLOATS[max(sizes, key=lambda dtype: sizes[dtype])] if sizes else "float32"


def read_folder(path: Path) -> ModelFolder:
    """Read a folder with config.json and weights, or a config.json alone.

    Raises ModelError that names the file and says what is wrong with it.
    """
    if path.is_file():
        config = _config(path)
        return ModelFolder(path.parent, config, None, _tokenizer(path.parent))
    if not path.is_dir():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        known = [sibling.name for sibling in siblings if sibling.is_dir()]
        raise ModelError(f"there is no folder {str(path)!r}{nearest(path.name, known)}")
    if (path / ADAPTER).is_file():
        raise ModelError(f"{path} holds an adapter ({ADAPTER}); merge it into its model first")
    if not (path / CONFIG).is_file():
        known = [sibling.name for sibling in path.iterdir()]
        raise ModelError(f"{path} has no {CONFIG}{nearest(CONFIG, known)}")
    return ModelFolder(path, _config(path / CONFIG), _tensors(path), _tokenizer(path))


def missing_package() -> str | None:
    """Why no such model can be made here, or None."""
    if find_spec("transformers") is None:
        return f"a Hugging Face model needs the package transformers, which is missing: {EXTRA}"
    return None


def _config(path: Path) -> dict[str, Any]:
    config = _json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{path} has no text 'model_type', and so is no configuration of a transformers model"
            f"{nearest('model_type', config)}"
        )
    if quantized := config.get("quantization_config"):
        known = isinstance(quantized, dict)
        method = quantized.get("quant_method", "some method") if known else "some method"
        raise ModelError(
            f"{path} is of a checkpoint that {method} has quantized; name the one it was made "
            "from: mmpack quantizes itself, see `precision`"
        )
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _tokenizer(folder: Path) -> tuple[str, ...]:
    return tuple(name for name in TEXT if (folder / name).is_file())


def _tensors(folder: Path) -> dict[str, Held]:
    # As transformers does: one file goes before an index.
    if (folder / WEIGHTS).is_file():
        return _header(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    names = sorted(path.name for path in folder.iterdir())
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        raise ModelError(
            f"{folder} has its weights in {pickled[0]}, a pickle, which could run anything; to "
            "make safetensors of them, in Python: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(another)"
        )
    raise ModelError(
        f"{folder} has no {WEIGHTS} and no {INDEX}{nearest(WEIGHTS, names)}; to build with random "
        f"weights, name {folder / CONFIG}"
    )


def _sharded(folder: Path) -> dict[str, Held]:
    index = folder / INDEX
    read = _json(index)
    named = read.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise ModelError(f"{index} has no 'weight_map' of tensors to files")
    if not isinstance(read.get("metadata"), dict):
        raise ModelError(f"{index} has no 'metadata', which transformers wants; it may be {{}}")
    shards = sorted(set(named.values()))
    missing = [n for n in shards if not (folder / n).is_file()]
    if missing:
        known = [path.name for path in folder.glob("*.safetensors")]
        raise ModelError(
            f"{index} names {_listed(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not there{nearest(missing[0], known)}"
        )
    held: dict[str, Held] = {}
    for shard in shards:
        held.update(_header(folder / shard))
    lost = sorted(name for name, file in named.items() if name not in held)
    if lost:
        raise ModelError(
            f"{folder / named[lost[0]]} has no tensor {lost[0]!r}, which {INDEX} says is in it"
            f"{nearest(lost[0], held)}"
        )
    return held


def _header(path: Path) -> dict[str, Held]:
    """The tensors of one file, of which every byte must be there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            held = {name: _held(path.name, file.get_slice(name)) for name in list(file.keys())}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file, or not all of it: {error}") from error
    odd = [f"{name!r} is {h.dtype}" for name, h in held.items() if h.dtype not in FLOATS]
    odd = [told for told in odd if not told.endswith((" I64", " I32", " BOOL"))]
    if odd:
        raise ModelError(
            f"{path}: {odd[0]}; weights may be {', '.join(FLOATS)}: name the checkpoint that this "
            "one was quantized from"
        )
    return held


def _held(file: str, tensor: Any) -> Held:
    return Held(file, tensor.get_dtype(), tuple(tensor.get_shape()))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
