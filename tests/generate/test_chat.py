"""Chat templates give what transformers makes of them, and cannot do what they should not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from mmpack.multimethod.errors import CallError, FormatError
from mmpack.multimethod.generate import chat
from mmpack.multimethod.generate.chat import render
from mmpack.multimethod.generate.tokenizer import Tokenizer

from .tokenizers_made import SMOLLM2, byte_level, files

USER = {"role": "user", "content": 'What is 1 < 2 & "é"?\n'}
ANSWER = {"role": "assistant", "content": "  True.  "}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "several": [USER, ANSWER, USER],
    "empty": [{"role": "user", "content": ""}],
}
TEMPLATES = {
    "SmolLM2": SMOLLM2,
    "blocks": """{{ bos_token }}
    {%- for message in messages %}
      {% if message.role == 'system' %}
        {% continue %}
      {% endif %}
      {% if loop.index > 2 %}{% break %}{% endif %}
      [{{ message['role'] | upper }}]{{ message['content'] | trim }}{{ eos_token }}
    {% endfor %}
    {% if add_generation_prompt %}
    [ASSISTANT]
    {%- endif %}
    """,
    "json": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ {'b': 1, 'a': '<é>'}"
    " | tojson(sort_keys=true) }}",
    "namespaces": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}"
    "{% set ns.n = ns.n + m['content'] | length %}{% set ns.last = m.role %}{% endfor %}"
    "{{ ns.n }} {{ ns.last }} {{ dict(a=1, b=2) }} {{ messages[::-1][0]['role'] }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ m.content }}{% endif %}{% endfor %}",
    "macros": "{% macro show(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% endfor %}{{ strftime_now('%Y') }}"
    "{{ 'tools' if tools else 'none' }}{{ documents is none }}{{ 'ab' * 3 }}{{ 2 ** 10 }}",
}


def tokenizer(template: object, **more: Any) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """Ours, and transformers' of the same files."""
    made = byte_level(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **more}
    ours = Tokenizer(files(made, tokenizer_config={**config, "chat_template": template}), "m")
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return ours, theirs


@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize("messages", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_and_tokens_are_those_of_transformers(
    template: str, messages: list[dict[str, str]], reply: bool
) -> None:
    ours, theirs = tokenizer(template)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=reply, tokenize=False)
    text = ours.chat(messages, reply=reply)
    assert text == expected
    tokens = theirs.apply_chat_template(messages, add_generation_prompt=reply)["input_ids"]
    assert ours.encode(text, special=False) == tokens


def test_smollm2_is_what_it_documents() -> None:
    ours, _ = tokenizer(SMOLLM2)
    assert ours.chat([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_templates_with_names() -> None:
    named = [{"name": "default", "template": "d{{ x }}"}, {"name": "rag", "template": "r"}]
    ours, _ = tokenizer(named)
    assert ours.chat([USER]) == "d" and ours.chat([USER], name="rag") == "r"
    assert ours.chat([USER], x=3) == "d3"
    with pytest.raises(CallError, match=r"^m: no chat template 'rga'; did you mean 'rag'\?$"):
        ours.chat([USER], name="rga")


def test_a_template_in_a_file_of_its_own_goes_first() -> None:
    """As transformers has it since it writes such files."""
    content = files(byte_level(), tokenizer_config={"chat_template": "old"})
    ours = Tokenizer(content | {"chat_template.jinja": "née {{ messages[0].role }}".encode()}, "m")
    assert ours.chat([USER]) == "née user"


def test_no_template() -> None:
    with pytest.raises(CallError, match=r"^m: has no chat template \(chat_template\.jinja, or"):
        Tokenizer(files(byte_level()), "m").chat([USER])


def test_a_template_may_refuse() -> None:
    with pytest.raises(CallError, match=r"^m: refuses these messages: only users, please$"):
        render("{{ raise_exception('only users, please') }}", [SYSTEM], {}, "m")


@pytest.mark.parametrize("wrong", ["{% for %}", "{{ x", "{% endif %}", "{{ messages | nofilter }}"])
def test_what_is_no_template(wrong: str) -> None:
    with pytest.raises(FormatError, match=r"^m: is no Jinja template: "):
        render(wrong, [USER], {}, "m")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch gone') }}",
    "{{ self.__init__.__globals__.x }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{{ namespace.__init__.__globals__.x }}",
    "{{ dict.__globals__['_Refused'] }}",
    "{{ dict.__class__.__mro__.x }}",
    "{{ namespace(__class__=3) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 3 %}",
    "{{ messages | map(attribute='__class__.__base__') | list }}{{ (messages | map(attribute="
    "'__class__') | first).mro() }}",
    "{{ '{0.__class__.__mro__}'.format(messages) | length > 3 and messages.__class__.mro() }}",
    "{{ (messages | attr('append'))(1) }}",
    "{{ messages.append({'role': 'x'}) }}",
    "{{ messages[0].update(a=1) }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/passwd' %}",
    "{{ tokenizer.from_str }}{{ messages[0].items.__self__.__class__.mro() }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_malicious_template_does_not_get_out(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = [dict(USER)]
    with pytest.raises(FormatError, match=r"^m: fails on these messages: "):
        render(template, messages, {}, "m")
    assert messages == [USER] and os.listdir() == []


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% for a in range(99999) %}{{ range(99999) | map('string') | join }}{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_stopped(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "STEPS", 100_000)
    before = sys.gettrace()
    with pytest.raises(FormatError, match=r"^m: is not done after 100000 steps$"):
        render(template, [USER], {}, "m")
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** 12 * [1] }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_a_template_does_not_ask_for_all_memory_at_once(template: str) -> None:
    with pytest.raises(FormatError, match=r"^m: fails on these messages: "):
        render(template, [USER], {}, "m")


def test_a_long_chat_is_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "STEPS", chat.STEPS // 10)
    text = render(TEMPLATES["SmolLM2"], [USER, ANSWER] * 500, {}, "m")
    assert text.count("<|im_start|>") == 1002
