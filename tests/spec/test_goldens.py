"""Every mistake's exact text.

A case in `goldens/*.txt` has a title, a spec and what is said about it. The spec is `base.yaml`
with some lines replaced (`-` the old, `+` the new ones), or stands there in full.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.spec import SpecFile

GOLDENS = Path(__file__).parent / "goldens"


def cases() -> Iterator[object]:
    for path in sorted(GOLDENS.glob("*.txt")):
        for case in path.read_text().split("=== ")[1:]:
            title, _, rest = case.partition("\n")
            spec, _, expected = rest.partition("\n---\n")
            yield pytest.param(spec, expected.strip("\n"), id=f"{path.stem}: {title}")


def patched(base: str, spec: str) -> str:
    """The base with each run of `-` lines replaced by the `+` lines that follow it."""
    lines = spec.splitlines()
    if not lines or not all(line[:1] in "-+" and line[:2] != "--" for line in lines):
        return spec
    old: list[str] = []
    new: list[str] = []
    for line, after in zip(lines, [*lines[1:], "-"], strict=True):
        (old if line[0] == "-" else new).append(line[1:])
        if line[0] == "+" and after[0] == "-":
            before = "\n".join(old) + "\n"
            assert base.count(before) == 1, f"not once in the base: {before}"
            base = base.replace(before, "".join(f"{text}\n" for text in new))
            old, new = [], []
    return base


@pytest.mark.parametrize(("spec", "expected"), cases())
def test_says(spec: str, expected: str, base: str, load: Callable[[str], SpecFile]) -> None:
    with pytest.raises(SpecError) as raised:
        load(patched(base, spec))
    assert str(raised.value) == expected


def test_base_is_right(base: str, load: Callable[[str], SpecFile]) -> None:
    assert list(load(base).methods) == [
        "embed", "layers.0.qkv", "layers.1.qkv", "attention", "head",
    ]  # fmt: skip
