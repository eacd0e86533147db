"""How a "not found" message ends."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mmpack.multimethod.errors import nearest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("known", "ends"),
    [
        (["attention", "mlp"], "; did you mean 'attention'?"),
        (["attenuation", "attention"], "; did you mean 'attention' or 'attenuation'?"),
        (["b", "a", "b"], "; known: a, b"),
        (map(str, range(10)), "; known: 0, 1, 2, 3, 4, 5, 6, 7, … (10 in all)"),
        ([], ""),
    ],
)
def test_nearest(known: list[str], ends: str) -> None:
    assert nearest("atention", known) == ends


def test_nobody_else_writes_the_separator() -> None:
    for path in [*ROOT.glob("multimethod/**/*.py"), *ROOT.glob("wrappers/*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.JoinedStr):
                for text, value in zip(node.values, node.values[1:], strict=False):
                    if "nearest(" in ast.unparse(value) and isinstance(text, ast.Constant):
                        assert not text.value.endswith((";", "; ")), f"{path}:{node.lineno}"
