"""The flows of a language model's spec: a prompt in chunks, and one token after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmpack.multimethod.init.choices import Choices
from mmpack.multimethod.init.decoder import Decoder
from mmpack.multimethod.init.methods import rotary_kinds
from mmpack.multimethod.init.yaml_text import Lines


def flows(decoder: Decoder, choices: Choices) -> Iterable[Lines]:
    if choices.chunk == 1:
        yield ["decode:", *_flow(decoder, choices, "decode", "one", "one")]
        return
    yield [
        f'"{{name}}": # a prompt, {choices.chunk} tokens at a time; what is written, one by one',
        "  each: {name: [prefill, decode], n: {cycle: [chunk, one]}}",
        *_flow(decoder, choices, "{name}", "{n}", '"{n}"'),
    ]


def _flow(decoder: Decoder, choices: Choices, name: str, size: str, cut: str) -> Lines:
    whole = [f'- "{name}"' if name.startswith("{") else f"- {name}"]
    steps = whole if choices.split == "whole" else _steps(decoder, choices, size)
    return [
        f"  cut: {{tokens: {cut}}}",
        "  steps:",
        *(f"    {line}" for line in steps),
        "  outputs: [logits]",
        "  reference: logits",
    ]


def _steps(decoder: Decoder, choices: Choices, n: str) -> Lines:
    lines = [f"- embedding.{n}"]
    for kind in rotary_kinds(decoder):
        if decoder.several_rotary:
            gives = f"{{cos: cos.{kind.name}, sin: sin.{kind.name}}}"
            lines.append(f'- {{run: "rotary.{kind.name}.{n}", gives: {gives}}}')
        else:
            lines.append(f"- rotary.{n}")
    several = len(decoder.kinds) > 1
    cycled = decoder.several_rotary or (several and not choices.fixed)
    kinds = f", kind: {{cycle: [{', '.join(_period(decoder.order))}]}}" if cycled else ""
    lines += [f"- each: {{i: 0..{decoder.layers - 1}{kinds}}}", "  steps:"]
    turned = ['cos: "cos.{kind}"', 'sin: "sin.{kind}"'] if decoder.several_rotary else []
    cache = 'k: "keys.{i}", v: "values.{i}"'
    if choices.split == "block":
        inner = [_step(f"layers.{{i}}.block.{n}", {"with": ", ".join(turned)})]
    elif choices.fixed:
        inner = [
            _step(f"layers.{{i}}.qkv_proj.{n}", {"with": ", ".join(turned)}),
            _step(f"layers.{{i}}.attention.{n}", {}),
            _step(f"layers.{{i}}.output_mlp.{n}", {}),
        ]
    else:
        attention = f"attention.{{kind}}.{n}" if several else f"attention.{n}"
        inner = [
            _step(f"layers.{{i}}.qkv_proj.{n}", {"with": ", ".join(turned), "append": cache}),
            _step(attention, {"with": cache}),
            _step(f"layers.{{i}}.output_mlp.{n}", {}),
        ]
    head = f"- lm_head.{n}"
    if choices.chunk > 1:
        comment = "where only the last logits are wanted"
        head = f'- {{run: "lm_head.{n}", last: lm_head.one}} # {comment}'
    return [*lines, *(f"    - {step}" for step in inner), head]


def _step(run: str, more: Mapping[str, str]) -> str:
    given = "".join(f", {key}: {{{value}}}" for key, value in more.items() if value)
    return f'{{run: "{run}"{given}}}'


def _period(order: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest beginning that, repeated, gives all of it."""
    for length in range(1, len(order)):
        if all(name == order[i % length] for i, name in enumerate(order)):
            return order[:length]
    return order
