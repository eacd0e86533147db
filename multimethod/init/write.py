"""The text of a spec, as a person would have written it, for a decoder and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from textwrap import fill

from attrs import frozen

from mmpack.multimethod.init.choices import Choices, Target
from mmpack.multimethod.init.decoder import Decoder
from mmpack.multimethod.init.flows import flows
from mmpack.multimethod.init.methods import attention_target, methods
from mmpack.multimethod.init.yaml_text import Lines, joined, pairs, text


@frozen
class Sources:
    """What the spec names, relative to its own folder: the model, the files that travel in the
    program (name -> path), and the calibration callable, where a precision wants one."""

    model: str
    files: Mapping[str, str]
    calibration: str | None


def write_spec(decoder: Decoder, choices: Choices, sources: Sources, name: str) -> str:
    """The text. `name` is that of the file, without its suffix."""
    parts = [
        _head(decoder, sources, name),
        ["mmpack: 1"],
        [f"model: {{huggingface: {text(sources.model)}}}", *_calibration(sources)],
        _files(sources),
        _dims(choices),
        _targets(choices),
        ["methods:", *joined(methods(decoder, choices))],
        _state(choices),
        ["flow:", *joined(flows(decoder, choices))],
        _constants(decoder, choices),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(decoder: Decoder, sources: Sources, name: str) -> Lines:
    about = (
        f"{decoder.title}: {decoder.layers} layers, {decoder.hidden} wide, {decoder.heads} heads "
        f"of {decoder.head_dim} channels ({decoder.kv_heads} of keys and values), a vocabulary of "
        f"{decoder.vocabulary}. Written by `mmpack init`, and yours to change."
    )
    program = quote(f"{name}.pte")
    run = f'mmpack generate {program} --prompt "Once upon a time"'
    if not sources.files:
        run = f"mmpack generate {program} --tokens 1,2,3"
    lines = fill(about, 100, initial_indent="# ", subsequent_indent="# ").splitlines()
    return [*lines, "#", f"#     mmpack build {quote(f'{name}.yaml')}", f"#     {run}"]


def _calibration(sources: Sources) -> Lines:
    if sources.calibration is None:
        return []
    return [f"calibration: {sources.calibration} # the texts that ranges of values are taken from"]


def _files(sources: Sources) -> Lines:
    if not sources.files:
        return []
    listed = [f"  {name}: {text(path)}" for name, path in sources.files.items()]
    return ["files: # travel in the program, for `mmpack generate`", *listed]


def _dims(choices: Choices) -> Lines:
    lines = ["dims:"]
    if choices.chunk > 1:
        lines.append(f"  chunk: {choices.chunk} # tokens of a prompt that are read at once")
    lines.append("  one: 1 # the token that is being written")
    if not choices.fixed:
        lines.append(f"  kv: {{min: 1, max: {choices.context}}} # rows of the caches so far")
    return lines


def _targets(choices: Choices) -> Lines:
    lines = ["targets:"]
    if choices.npu is not None:
        lines.append(f"  npu: {_target(choices.npu)} # static shapes")
    if choices.npu is None or attention_target(choices) == "cpu":
        lines.append(f"  cpu: {_target(choices.cpu)}")
    if attention_target(choices) == "float":
        lines.append(
            f"  float: {{backend: {choices.cpu.backend}}} # for attention, without weights"
        )
    lines.append("  plain: {backend: portable} # ExecuTorch's own kernels")
    return lines


def _state(choices: Choices) -> Lines:
    if not choices.fixed:
        return []
    several = choices.chunk > 1
    kind, why = ("shared", "one memory for both") if several else ("private", "of one method each")
    return [f'state: {{{kind}: ["*.key_cache", "*.value_cache"]}} # {why}']


def _constants(decoder: Decoder, choices: Choices) -> Lines:
    return [
        "constants: # as ExecuTorch's own runners for language models ask for them",
        f"  get_max_context_len: {choices.context}",
        f"  get_max_seq_len: {choices.chunk}",
        f"  get_vocab_size: {decoder.vocabulary}",
    ]


def _target(target: Target) -> str:
    return f"{{{pairs({'backend': target.backend, **target.options})}}}"
