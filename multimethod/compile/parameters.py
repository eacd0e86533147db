"""Do the inputs that a spec names fit the parameters of a Python function?"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from mmpack.multimethod.errors import nearest


def wrong_names(
    title: str, signature: inspect.Signature, inputs: Sequence[str]
) -> tuple[bool, str | None]:
    """Whether inputs are passed by name, and why they do not fit (or None).

    They are passed by name, unless the function takes `*args`: then they go in the spec's order,
    which must begin like the function's own. title: what the function is called in the message.
    """
    parameters = signature.parameters
    kinds = {p.kind for p in parameters.values()}
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    missing = [n for n in needed if n not in inputs]
    by_name = inspect.Parameter.VAR_POSITIONAL not in kinds
    unknown = []
    if by_name and inspect.Parameter.VAR_KEYWORD not in kinds:
        unknown = [n for n in inputs if n not in named]
    if unknown:
        hint = nearest(unknown[0], missing or named)
        also = f" (it takes {', '.join(named)})" if len(named) > 1 else ""
        return by_name, f"{title} takes no input {unknown[0]!r}{hint}{also}"
    if missing:
        return by_name, f"{title} also needs {_quoted(missing)}, which the spec does not list"
    first = named[: len(inputs)]
    if not by_name and set(named) & set(inputs) and list(inputs[: len(first)]) != first:
        return by_name, f"{title} takes {', '.join(named)} first, in that order"
    return by_name, None


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
