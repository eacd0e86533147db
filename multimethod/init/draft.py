"""A Hugging Face folder -> a spec beside it, or anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.huggingface.folder import CONFIG, TOKENIZER, read_folder
from mmpack.multimethod.huggingface.model import draw_decoder, read_config
from mmpack.multimethod.init.choices import EMBEDDING, Choices, target, wrong
from mmpack.multimethod.init.decoder import Decoder, read_decoder
from mmpack.multimethod.init.rehearse import rehearse
from mmpack.multimethod.init.write import Sources, write_spec
from mmpack.multimethod.scratch import scratch_folder
from mmpack.multimethod.targets import BACKENDS

CALIBRATION = "calibration.py"


def init(source: Path, output: Path, choices: Choices, *, overwrite: bool = False) -> list[Path]:
    """Write a spec for the decoder of a Hugging Face folder, or of a config.json alone; and,
    where a precision wants examples, the file that yields some. Returns what was written.

    An examples' file that is there is kept, whoever wrote it.

    Raises ModelError if it is no decoder that the wrappers can cut, SpecError if the choices do
    not go with it, OutputError if a file is there already or cannot be written.
    """
    _require_writable(output, overwrite)
    config = read_config(source)
    decoder = read_decoder(draw_decoder(config, device="meta"))
    _require_context(decoder, choices)
    _require_groups(decoder, choices)
    rehearse(config, decoder)
    texts: dict[Path, str] = {}
    here = output.absolute().parent
    files = _files(source, here)
    calibration = None
    if choices.static.calibrated or choices.cpu.calibrated:
        calibration = f"{CALIBRATION}:prompts"
        tokenizer = files.get(TOKENIZER)
        examples = output.with_name(CALIBRATION)
        if not examples.exists():
            texts[examples] = _calibration(tokenizer, decoder, choices.context)
    sources = Sources(_relative(source, here), files, calibration)
    texts = {output: write_spec(decoder, choices, sources, output.stem), **texts}
    for path, text in texts.items():
        _write(path, text)
    return list(texts)


def _require_writable(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already; --force writes over it")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output} cannot be written: there is no folder {output.parent}")


def _require_context(decoder: Decoder, choices: Choices) -> None:
    if decoder.longest is not None and choices.context > decoder.longest:
        raise wrong(
            f"--context {choices.context}: what {decoder.title} computes of positions holds for "
            f"texts of up to {decoder.longest} tokens, as its configuration says"
        )


def _require_groups(decoder: Decoder, choices: Choices) -> None:
    if choices.embedding is None:
        return
    table = target(f"{EMBEDDING}:{choices.embedding}", "--embedding")
    backend = BACKENDS[table.backend]
    group = backend.embedding_group(backend.options(table.options))
    if group is not None and decoder.hidden % group:
        raise wrong(
            f"--embedding {choices.embedding}: the {decoder.hidden} numbers in a row of the table "
            f"are no multiple of {group}, the group that shares a scale; 8w has one for each row"
        )


def _calibration(tokenizer: str | None, decoder: Decoder, context: int) -> str:
    """The text of a module with a callable that yields inputs of the flows."""
    if tokenizer is None:
        return _OF_TOKENS.substitute(vocabulary=decoder.vocabulary, length=min(100, context))
    return _OF_TEXTS.substitute(path=repr(tokenizer), context=context)


_OF_TEXTS = Template('''"""Texts that the ranges of quantized values are taken from.

These are a start. Put texts here of the kind that the model will read: what it never saw here may
lie outside the ranges that it computes in.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer

TEXTS = [
    "Once upon a time there was a lighthouse keeper who counted the ships that passed by night.",
    "To make the dough, mix 500 g of flour with 300 ml of water, 10 g of salt and some yeast.",
    "def mean(values):\\n    return sum(values) / len(values)\\n",
    "Q: What is the capital of France?\\nA: The capital of France is Paris.",
    "The committee will meet on Tuesday at half past nine; please send your comments before then.",
    "Water boils at 100 degrees Celsius at sea level, and at lower temperatures higher up.",
    "«Où est la gare ?», demanda-t-elle. Niemand antwortete ihr. Nadie sabía nada.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181",
]


def prompts():
    """Yields tokens [1, length], int64."""
    tokenizer = Tokenizer.from_file(str(Path(__file__).parent / $path))
    for text in TEXTS:
        yield {"tokens": torch.tensor([tokenizer.encode(text).ids[:$context]])}
''')
_OF_TOKENS = Template('''"""Tokens that the ranges of quantized values are taken from.

There was no tokenizer beside the model, so these are random ones, which is next to nothing: put
texts of the kind that the model will read in their place.
"""

import torch

VOCABULARY = $vocabulary


def prompts():
    """Yields tokens [1, length], int64."""
    chance = torch.Generator().manual_seed(0)
    for _ in range(8):
        yield {"tokens": torch.randint(VOCABULARY, (1, $length), generator=chance)}
''')


def _files(source: Path, here: Path) -> dict[str, str]:
    folder = read_folder(source)
    paths = [folder.path / name for name in folder.tokenizer]
    if paths:
        paths.append(source if source.is_file() else source / CONFIG)
    return {CONFIG if path == source else path.name: _relative(path, here) for path in paths}


def _relative(path: Path, here: Path) -> str:
    return os.path.relpath(path.absolute(), here)


def _write(path: Path, text: str) -> None:
    try:
        with scratch_folder(path.absolute().parent, path.name) as folder:
            draft = folder / path.name
            draft.write_text(text)
            draft.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
