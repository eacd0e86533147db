"""What lies in a model's folder: its configuration, and the headers of its safetensors files.

    folder = read_folder(Path("smollm2"))
    folder.config["model_type"], folder.tensors["lm_head.weight"].shape

Neither torch nor transformers is imported, and of the weights only the headers are read, so that
`mmpack check` answers at once.

Source of the format: https://github.com/huggingface/safetensors, "Format".
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
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""What a folder may hold besides for whoever turns text into tokens and back."""

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
"""dtype of safetensors -> bits of an element. Others are smaller than a byte."""
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Those of them that weights may have here, and what torch calls them."""
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself takes none that is longer."""

EXTRA = "pip install 'mmpack[hf]'"


@frozen
class Held:
    """A tensor of a file, as its header describes it."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


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
                sizes[held.dtype] = sizes.get(held.dtype, 0) + held.bytes
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
    return tuple(name for name in TOKENIZER if (folder / name).is_file())


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
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
        raise ModelError(f"{index} has no 'weight_map' of tensors to files")
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
    """The tensors of one file: 8 bytes that are the header's length (little-endian), the header,
    which is JSON, then the data. Every datum must be there, whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ModelError(
                    f"{path} is no safetensors file, or not all of it: it has {size} bytes, and "
                    f"its first 8 say that its header has {length}"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text)
        held = {
            name: _held(path.name, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
        end = max((entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path} is no safetensors file: its header, {length} bytes from offset 8, cannot be "
            f"read: {error}"
        ) from error
    if 8 + length + end != size:
        raise ModelError(
            f"{path} is {'truncated' if 8 + length + end > size else 'longer than it should be'}: "
            f"by its header it has {8 + length + end} bytes, and it has {size}"
        )
    odd = [f"{name!r} is {h.dtype}" for name, h in held.items() if h.dtype not in FLOATS]
    odd = [told for told in odd if not told.endswith((" I64", " I32", " BOOL"))]
    if odd:
        raise ModelError(
            f"{path}: {odd[0]}; weights may be {', '.join(FLOATS)}: name the checkpoint that this "
            "one was quantized from"
        )
    return held


def _held(file: str, entry: Mapping[str, Any]) -> Held:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if any(not isinstance(n, int) or n < 0 for n in (*shape, begin, end)) or end < begin:
        raise ValueError(f"a shape of {list(shape)} at {begin} to {end}")
    needed = math.prod(shape) * BITS[dtype] // 8 if dtype in BITS else end - begin
    if end - begin != needed:
        raise ValueError(f"{dtype} of shape {list(shape)} takes {needed} bytes, not {end - begin}")
    return Held(file, dtype, shape, end - begin)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
