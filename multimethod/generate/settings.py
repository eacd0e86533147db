"""What the JSON files of a Hugging Face model say of its tokens, read without any library.

They have grown over the years, so each fact has several places:

    the end        `eos_token_id` of generation_config.json, else of config.json: one or a list;
                   and `eos_token` of tokenizer_config.json, a text
    the beginning  `bos_token` of tokenizer_config.json; whether texts get it, tokenizer.json says
                   (transformers, too, heeds `add_bos_token` only where that file is missing)
    chat           chat_template.jinja, else `chat_template` of tokenizer_config.json: a text, or
                   a list of named ones
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from mmpack.multimethod.errors import CallError, FormatError
from mmpack.multimethod.huggingface.folder import (
    CONFIG,
    GENERATION,
    TEMPLATE,
    TEXT,
    TOKENIZER,
    TOKENIZER_CONFIG,
)

NAMES = (*TEXT, CONFIG)
"""Files that are looked for in a folder."""


@frozen
class Settings:
    """tokens: special tokens as texts, by what they are called (`bos_token`). end: ids of those
    that end a text. templates: chat templates by name; one without a name is `default`. added:
    `added_tokens_decoder` as it stands there: tokens by their ids."""

    tokens: Mapping[str, str]
    end: frozenset[int]
    templates: Mapping[str, str]
    added: Any


def read_settings(files: Mapping[str, bytes], where: str) -> Settings:
    """`where` starts the messages of FormatErrors: what the files are in."""
    tokenizer = _json(files, TOKENIZER_CONFIG, where)
    end: frozenset[int] = frozenset()
    for name in (CONFIG, GENERATION):
        config = _json(files, name, where)
        inner = config.get("text_config")
        inner = inner if isinstance(inner, dict) else {}
        found = config.get("eos_token_id", inner.get("eos_token_id"))
        if found is not None:
            end = _ids(found, f"{where}: {name}: eos_token_id")
    tokens = {
        name: text
        for name, value in tokenizer.items()
        if name.endswith("_token") and (text := _text(value)) is not None
    }
    templates = _templates(tokenizer.get("chat_template"), where)
    if TEMPLATE in files:
        templates = {"default": _decoded(files[TEMPLATE], f"{where}: {TEMPLATE}")}
    return Settings(tokens, end, templates, tokenizer.get("added_tokens_decoder") or {})


def files_of(folder: str | Path) -> dict[str, bytes]:
    """The files of a model's folder that say something of its tokens. Raises CallError."""
    place = Path(folder)
    if not place.is_dir():
        raise CallError(f"{place}: expected a folder with {TOKENIZER}, there is none of that name")
    try:
        return {name: (place / name).read_bytes() for name in NAMES if (place / name).is_file()}
    except OSError as error:
        raise CallError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        plain = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: {name}: not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise FormatError(f"{where}: {name}: a {type(plain).__name__}, expected a mapping")
    return plain


def _ids(value: object, where: str) -> frozenset[int]:
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise FormatError(f"{where}: expected a token's number or a list of them, got {value!r}")
    return frozenset(ids)


def _text(token: object) -> str | None:
    """A token as a text; it may stand there with how it is to be matched."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _templates(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    items = value if isinstance(value, list) else [value]
    templates = {}
    for item in items:
        if not (isinstance(item, dict) and {"name", "template"} <= item.keys()):
            raise FormatError(
                f"{where}: tokenizer_config.json: chat_template: expected a text, or a list of "
                "{name, template}"
            )
        templates[str(item["name"])] = str(item["template"])
    return templates


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8: {error}") from error
