"""Text to tokens and back as `tokenizers` and transformers have it, streamed or whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import processors
from transformers import AutoTokenizer

from mmpack.multimethod import CallError, FormatError, Tokenizer, link, load

from ..link.programs import case
from .tokenizers_made import byte_level, files, folder, spaced

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
S, END, IM_END = 256, 257, 258
TEXT = "héllo €5 😀\n"


def made(tokenizer: Library | None = None, **others: Any) -> Tokenizer:
    return Tokenizer(files(tokenizer or byte_level(SPECIAL), **others), "here")


def test_of_a_program_and_of_a_folder(tmp_path: Path) -> None:
    content = files(byte_level(SPECIAL), tokenizer_config={"eos_token": "</s>"})
    (tmp_path / "a.pte").write_bytes(case("mlp"))
    link([tmp_path / "a.pte"], tmp_path / "b.pte", files=content)
    for source in (load(tmp_path / "b.pte"), folder(tmp_path / "model", content)):
        tokenizer = Tokenizer.of(source)
        assert tokenizer.encode(TEXT) == list(TEXT.encode())
        assert tokenizer.decode(list(TEXT.encode())) == TEXT
        assert tokenizer.eos == {END}
    with pytest.raises(CallError, match=r"a\.pte: has no tokenizer\.json \(its files: none\)$"):
        Tokenizer.of(load(tmp_path / "a.pte"))


@pytest.mark.parametrize(
    ("others", "eos"),
    [
        ({}, set()),
        ({"generation_config": {"eos_token_id": 7}}, {7}),
        ({"generation_config": {"eos_token_id": [7, 9]}}, {7, 9}),
        ({"config": {"eos_token_id": [3]}}, {3}),
        ({"config": {"text_config": {"eos_token_id": 3}}}, {3}),
        ({"config": {"eos_token_id": 3}, "generation_config": {"eos_token_id": 4}}, {4}),
        ({"config": {"eos_token_id": 3}, "generation_config": {"eos_token_id": None}}, {3}),
        ({"tokenizer_config": {"eos_token": "</s>"}}, {END}),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False}}}, {END}),
        ({"tokenizer_config": {"eos_token": "</none>"}}, set()),
        (
            {
                "tokenizer_config": {"eos_token": "<|im_end|>"},
                "generation_config": {"eos_token_id": [END]},
            },
            {END, IM_END},
        ),
    ],
)
def test_what_ends_a_text(others: dict[str, Any], eos: set[int]) -> None:
    assert made(**others).eos == eos


BEGINS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", S)])


@pytest.mark.parametrize("processor", [None, BEGINS], ids=["plain", "begins"])
@pytest.mark.parametrize(
    "config",
    [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": False}],
    ids=str,
)
def test_texts_begin_as_transformers_has_them_begin(
    processor: Any, config: dict[str, bool], tmp_path: Path
) -> None:
    library = byte_level(SPECIAL)
    if processor is not None:
        library.post_processor = processor
    config = {"bos_token": "<s>", "eos_token": "</s>", **config}
    content = files(
        library, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **config}
    )
    theirs = AutoTokenizer.from_pretrained(folder(tmp_path / "model", content))
    ours = Tokenizer(content, "here")
    assert ours.bos == theirs.bos_token_id == S
    for text in (TEXT, "", "<s>a</s>"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)


def test_tokens_that_only_the_configuration_has(tmp_path: Path) -> None:
    added = {
        "256": {"content": "<x>", "special": True},
        "257": {"content": "<y>", "special": False},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added}
    content = files(byte_level(), tokenizer_config=config)
    theirs = AutoTokenizer.from_pretrained(folder(tmp_path / "model", content))
    ours = Tokenizer(content, "here")
    assert ours.encode("a<x>b<y>") == theirs.encode("a<x>b<y>") == [97, 256, 98, 257]
    assert ours.decode([97, 256, 98, 257]) == "ab<y>"


def test_padding_and_truncation_are_no_part_of_it() -> None:
    library = byte_level(SPECIAL)
    library.enable_truncation(4)
    library.enable_padding(length=64, pad_id=S)
    assert made(library).encode("abcdefgh") == list(b"abcdefgh")


LIBRARIES = {
    "bytes": byte_level(SPECIAL),
    "merges": byte_level(SPECIAL, [("h", "e"), ("l", "l"), ("he", "ll"), ("Ã", "©")]),
    "spaced": spaced(),
}


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=20))
def test_pieces_are_the_text(library: Library, text: str) -> None:
    tokenizer = made(library)
    tokens = tokenizer.encode(text)
    pieces = list(tokenizer.stream(tokens))
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=12), special=st.lists(st.integers(0, 12), max_size=3))
def test_pieces_of_bytes_that_are_no_text(data: bytes, special: list[int]) -> None:
    """As a model may write them; special tokens among them are not shown."""
    tokens = list(data)
    for place in special:
        tokens.insert(place, END)
    tokenizer = made()
    assert "".join(tokenizer.stream(tokens)) == tokenizer.decode(tokens)
    assert tokenizer.decode(list(data)) == data.decode(errors="replace")


def test_a_character_waits_for_all_its_bytes() -> None:
    tokenizer, given_ = made(), []

    def tokens() -> Any:
        for byte in "a€b".encode():
            given_.append(byte)
            yield byte

    seen = [(piece, len(given_)) for piece in tokenizer.stream(tokens())]
    assert seen == [("a", 1), ("€", 4), ("b", 5)]
    assert list(tokenizer.stream("€".encode()[:2])) == ["\ufffd"]


def test_a_space_before_the_first_word_stays_where_text_went_before() -> None:
    tokenizer = made(LIBRARIES["spaced"])
    prompt, tokens = tokenizer.encode("b"), tokenizer.encode("a a")
    assert "".join(tokenizer.stream(tokens)) == "a a"
    whole = tokenizer.decode(prompt + tokens)
    assert "b" + "".join(tokenizer.stream(tokens, after=prompt)) == whole == "b a a"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", b"{}", "tokenizer.json: is no tokenizer: "),
        ("tokenizer.json", b"\xff", "tokenizer.json: is no tokenizer: "),
        ("config.json", b"{", "config.json: not JSON: "),
        ("config.json", b"[" * 100_000, "config.json: not JSON: "),
        ("config.json", b"[]", "config.json: a list, expected a mapping$"),
        ("generation_config.json", b'{"eos_token_id": "2"}',
         "generation_config.json: eos_token_id: expected a token's number or a list of them, got"),
        ("tokenizer_config.json", b'{"chat_template": 3}',
         "tokenizer_config.json: chat_template: expected a text, or a list of"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9": {"content": "<z>"}}}',
         "tokenizer_config.json: added_tokens_decoder: does not fit tokenizer.json: '<z>' has id"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [3]}',
         "tokenizer_config.json: added_tokens_decoder: does not fit"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8: "),
    ],
)  # fmt: skip
def test_files_that_are_not_what_they_should_be(name: str, content: bytes, told: str) -> None:
    given_ = files(byte_level(SPECIAL)) | {name: content}
    with pytest.raises(FormatError, match="^here: " + told):
        Tokenizer(given_, "here")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"none: expected a folder with tokenizer\.json"):
        Tokenizer.of(tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CallError, match=r"has no tokenizer\.json \(its files: config\.json\)"):
        Tokenizer.of(tmp_path)
