"""Small tokenizers, made here: one token a byte, some more for what is special, and merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
"""The chat template that SmolLM2-instruct documents."""


def letters() -> list[str]:
    """What byte-level tokenizers write for each byte, 0 to 255."""
    split = ByteLevel(add_prefix_space=False, use_regex=False)
    ascii_ = {b: split.pre_tokenize_str(chr(b))[0][0] for b in range(128)}
    # Of the others, the second half of a character's two bytes, or the first, is theirs.
    for point in range(128, 2048):
        first, second = chr(point).encode()
        one, two = split.pre_tokenize_str(chr(point))[0][0]
        ascii_ |= {first: one, second: two}
    rest = [chr(256 + n) for n in range(512) if chr(256 + n) not in ascii_.values()]
    printable = {*range(0xA1, 0xAD), *range(0xAE, 0x100)}
    for byte in range(256):
        if byte not in ascii_:
            ascii_[byte] = chr(byte) if byte in printable else rest.pop(0)
    return [ascii_[byte] for byte in range(256)]


def byte_level(special: list[str] | None = None, merges: list[tuple[str, str]] = []) -> Tokenizer:  # noqa: B006
    """Token n is the byte n; after those, merges of two tokens and special tokens."""
    vocabulary = {letter: number for number, letter in enumerate(letters())}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in special or []])
    return made


def spaced() -> Tokenizer:
    """As Llama's: a space is part of the word behind it, unknown characters are bytes, and the
    first word's space is left out."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a"]
    made = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace("▁"), pre_tokenizers.Split(Regex("(?=▁)"), "isolated")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<s>", "</s>"])
    return made


def files(tokenizer: Tokenizer, **others: Any) -> dict[str, bytes]:
    """tokenizer.json, and other files by their names without `.json`."""
    made = {"tokenizer.json": tokenizer.to_str().encode()}
    return made | {f"{name}.json": json.dumps(plain).encode() for name, plain in others.items()}


def folder(path: Path, content: dict[str, bytes]) -> Path:
    """Files, as a folder of a model."""
    path.mkdir(exist_ok=True)
    for name, data in content.items():
        (path / name).write_bytes(data)
    return path
