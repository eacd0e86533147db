"""Text -> tokens -> text, by the `tokenizer.json` that comes with a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmpack.multimethod.errors import CallError, FormatError, nearest
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.generate.chat import Message, render
from mmpack.multimethod.generate.extra import need
from mmpack.multimethod.generate.settings import files_of, read_settings
from mmpack.multimethod.huggingface.folder import TOKENIZER


class Tokenizer:
    """The tokenizer of a program, or of a folder of a Hugging Face model.

    files: name -> bytes. where: what messages call the place that they are in.

    Raises FormatError for files that are not what they should be, CallError if there is no
    tokenizer.json among them, ImportError if `tokenizers` is not installed.
    """

    def __init__(self, files: Mapping[str, bytes], where: str) -> None:
        if TOKENIZER not in files:
            there = ", ".join(files) or "none"
            raise CallError(f"{where}: has no {TOKENIZER} (its files: {there})")
        tokenizers = need("tokenizers", "a tokenizer")
        self.where = where
        self.settings = read_settings(files, where)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())
        except Exception as error:  # `tokenizers` raises nothing more special
            raise FormatError(f"{where}: {TOKENIZER}: is no tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._add()

    @classmethod
    def of(cls, source: Program | str | Path) -> Tokenizer:
        """That of a program, out of the files inside it, or that in a folder."""
        if isinstance(source, Program):
            return cls(source.files, str(source.path))
        return cls(files_of(source), str(source))

    @cached_property
    def bos(self) -> int | None:
        """The token that texts begin with, if there is one."""
        return self._id("bos_token")

    @cached_property
    def eos(self) -> frozenset[int]:
        """All tokens that end a text."""
        own = self._id("eos_token")
        return self.settings.end | ({own} if own is not None else set())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text. special: with those that the model wants around any text, which
        the text of a chat already has."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, special ones left out. Bytes that are no UTF-8 become "�"."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[Message], *, name: str = "default", **variables: Any) -> str:
        """The text of a conversation, up to where the model is to answer, by the template `name`;
        `variables` are what else it may look at. Raises CallError if there is no such template, or
        it refuses the messages."""
        templates = self.settings.templates
        if not templates:
            raise CallError(
                f"{self.where}: has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): this is no chat model, or its files are not all here"
            )
        if name not in templates:
            hint = nearest(name, templates)
            raise CallError(f"{self.where}: no chat template {name!r}{hint}")
        where = f"{self.where}: chat template"
        return render(templates[name], messages, self.settings.tokens, where, **variables)

    def stream(self, tokens: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
        """The text of tokens as they come, in pieces that are whole characters: a character's
        bytes may be spread over tokens. Joined, the pieces are what `decode` gives.

        after: tokens that stand before, which may decide whether the first word has a space.
        """
        decoders = need("tokenizers.decoders", "a tokenizer")
        stream = decoders.DecodeStream(ids=list(after), skip_special_tokens=True)
        held: list[int] = []
        for token in tokens:
            held.append(token)
            piece = stream.step(self._tokenizer, token)
            if piece is not None:
                held.clear()
                if piece:
                    yield piece
        if rest := self.decode(held):
            yield rest

    def _id(self, name: str) -> int | None:
        text = self.settings.tokens.get(name)
        found: int | None = self._tokenizer.token_to_id(text) if text is not None else None
        return found

    def _add(self) -> None:
        """Tokens that only tokenizer_config.json has, at the ids that it gives them."""
        from tokenizers import AddedToken

        try:
            wanted = sorted((int(n), token) for n, token in self.settings.added.items())
            for number, token in wanted:
                if self._tokenizer.token_to_id(token["content"]) is None:
                    keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
                    options = {key: bool(token[key]) for key in keys if key in token}
                    self._tokenizer.add_tokens([AddedToken(token["content"], **options)])
                    if (got := self._tokenizer.token_to_id(token["content"])) != number:
                        raise ValueError(f"{token['content']!r} has id {number}, and gets {got}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            where = f"{self.where}: tokenizer_config.json: added_tokens_decoder"
            raise FormatError(f"{where}: does not fit {TOKENIZER}: {error}") from error
