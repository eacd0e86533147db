"""What `mmpack generate` does: a program and a prompt -> pieces of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmpack.multimethod.errors import CallError
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.generate.decoder import find_decoder
from mmpack.multimethod.generate.generate import Generation, Statistics, generate
from mmpack.multimethod.generate.settings import files_of, read_settings
from mmpack.multimethod.generate.tokenizer import Tokenizer
from mmpack.multimethod.huggingface.folder import TOKENIZER
from mmpack.multimethod.runtime.engines import Threads


class Text(Iterator[str]):
    """Pieces of text as they are made; `statistics` as those of a Generation."""

    def __init__(self, pieces: Iterator[str], made: Generation) -> None:
        self._pieces, self._made = pieces, made

    @property
    def statistics(self) -> Statistics:
        return self._made.statistics

    def __next__(self) -> str:
        return next(self._pieces)


def continue_text(
    path: Path,
    prompt: str,
    *,
    chat: bool = False,
    system: str | None = None,
    tokenizer: Path | None = None,
    threads: Threads = None,
    data: Path | None = None,
    **options: Any,
) -> Text:
    """What a program writes after a text; or, in a chat, what it answers.

    chat: the text is what a user says to the model, after the `system` message if there is one.
    tokenizer: a folder with a tokenizer.json, in place of the program's own.
    threads, data: as of `load`. options: those of `generate`.
    """
    program = load(path, threads=threads, data=data)
    find_decoder(program)  # whoever has no language model needs no tokenizer
    words = _tokenizer(program, tokenizer)
    if chat:
        said = [{"role": "system", "content": system}] if system is not None else []
        text = words.chat([*said, {"role": "user", "content": prompt}])
        tokens = words.encode(text, special=False)
    else:
        tokens = words.encode(prompt)
    if not tokens and words.bos is not None:
        tokens = [words.bos]
    made = generate(program, tokens, stop=words.eos, **options)
    # An answer is a text of its own; what goes on with a text may begin with a space.
    return Text(words.stream(made, after=[] if chat else tokens), made)


def continue_tokens(
    path: Path,
    prompt: Sequence[int],
    *,
    tokenizer: Path | None = None,
    threads: Threads = None,
    data: Path | None = None,
    **options: Any,
) -> Text:
    """The same without any text: numbers of tokens, with commas between. It ends at those that
    `eos_token_id` in the program's files, or the folder's, names."""
    program = load(path, threads=threads, data=data)
    files = program.files if tokenizer is None else files_of(tokenizer)
    end = read_settings(files, str(tokenizer or program.path)).end
    made = generate(program, prompt, stop=end, **options)
    pieces = (f"{',' if number else ''}{token}" for number, token in enumerate(made))
    return Text(pieces, made)


def _tokenizer(program: Program, folder: Path | None) -> Tokenizer:
    if folder is None and TOKENIZER not in program.files:
        there = ", ".join(program.files) or "none"
        raise CallError(
            f"{program.path}: has no {TOKENIZER} (its files: {there}); build it with "
            f"`files: {{{TOKENIZER}: …}}` in the spec, name the model's folder (--tokenizer), or "
            "give and get numbers of tokens (--tokens 1,2,3)"
        )
    return Tokenizer.of(program if folder is None else folder)
