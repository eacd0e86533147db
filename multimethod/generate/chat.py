"""Messages -> the text that a model was trained to continue, by the template that comes with it.

Templates are Jinja, written for `apply_chat_template` of transformers, and are given here what
they are given there. They come with models, from strangers: they run in Jinja's sandbox, on plain
data, and for a bounded number of steps. Their memory is bounded only where an operator asks for
much at once; one that wants to can fill it in other ways.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any

from mmpack.multimethod.errors import CallError, FormatError
from mmpack.multimethod.generate.extra import need

Message = Mapping[str, Any]
"""`{"role": "user", "content": "…"}`; further keys are the template's affair."""

STEPS = 2_000_000
"""Lines of Python that a template may run for, its filters' included: about half a second. A
message of a chat takes some ten to a hundred."""

LARGEST = 1 << 20
"""Elements of a text or list that a multiplication in a template may make."""


def render(
    template: str,
    messages: Sequence[Message],
    tokens: Mapping[str, str],
    where: str,
    *,
    reply: bool = True,
    **variables: Any,
) -> str:
    """The text of a conversation.

    tokens: special tokens by their names, as in `bos_token`, for the template to use.
    reply: end with what stands before an answer of the model.
    variables: more of what the template may look at (`tools`, `enable_thinking`, …).

    Raises FormatError, which begins with `where`, for a template that is none or takes too long;
    CallError for messages that it refuses.
    """
    jinja2 = need("jinja2", "a chat template")
    given = {"tools": None, "documents": None, **tokens, **variables}
    try:
        compiled = _compiled(template)
    except jinja2.TemplateError as error:
        raise FormatError(f"{where}: is no Jinja template: {error}") from error
    plain = json.loads(json.dumps(list(messages)))  # nothing in it has methods of its own
    try:
        with _bounded():
            text = compiled.render(messages=plain, add_generation_prompt=reply, **given)
    except _Refused as error:
        raise CallError(f"{where}: refuses these messages: {error}") from error
    except _TooLong as error:
        raise FormatError(f"{where}: is not done after {STEPS} steps") from error
    except Exception as error:  # whatever a stranger's program may come to
        kind = type(error).__name__
        raise FormatError(f"{where}: fails on these messages: {kind}: {error}") from error
    assert isinstance(text, str)
    return text


class _Refused(Exception):
    """A template's `raise_exception`."""


class _TooLong(BaseException):
    """Out of steps. No `Exception`, since Jinja's own code catches some of these."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Counts the lines that Python runs in the block, in all functions, and ends it after STEPS."""
    left = STEPS

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooLong
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Sandbox(ImmutableSandboxedEnvironment):
        """Multiplications are looked at too: `'a' * 10 ** 10` would take all memory at once."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and max(abs(left), abs(right)) > 1000:
                raise SecurityError(f"{left} ** {right} is too large a number")
            for one, other in ((left, right), (right, left)):
                if hasattr(one, "__len__") and len(one) * other > LARGEST:
                    raise SecurityError(f"{other} times {len(one)} elements are too many")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """`{% generation %}` marks what a model wrote, which matters in training only."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_written")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _written(self, caller: Any) -> Any:
            return caller()

    class Names(Namespace):
        """Without names that begin with an underscore, under which Python keeps its own."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            made = dict(*rest, **kwargs)
            for name in made:
                _require_plain(name)
            Namespace.__init__(self, made)

        def __setitem__(self, name: str, value: Any) -> None:
            _require_plain(name)
            super().__setitem__(name, value)

    def _require_plain(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}")

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    environment.globals["namespace"] = Names
    return environment.from_string(template)


def _raise(message: str) -> None:
    raise _Refused(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
