"""No file imports from a room that stands below its own in CONTRIBUTING's table, where data moves
down: what stands below is not yet there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BESIDE = re.search(r"^Modules beside the rooms.*?(?=\n\n)", TEXT, re.DOTALL | re.MULTILINE)
ROOMS: list[str] = re.findall(r"^\| `([\w/.]+)` \|", TEXT, re.MULTILINE)
"""The table's first column from top to bottom. The first, `cli.py`, is the caller of them all."""


ALLOWED = {
    ("mmpack.multimethod.targets", "mmpack.multimethod.spec.records"),
    ("mmpack.multimethod.targets", "mmpack.multimethod.spec.structure"),
}
"""A room, and what it imports from below all the same."""
CHECK = "mmpack.multimethod.check"
"""A command, which takes from the rooms and which none of them takes from."""


def module(path: str) -> str:
    """What a path in the repository is imported as."""
    return "mmpack." + path.removesuffix("/").removesuffix(".py").replace("/", ".")


PLACES = {module(room): number for number, room in enumerate(ROOMS)}


def beside() -> set[str]:
    """The modules that CONTRIBUTING lists as serving several rooms."""
    assert BESIDE is not None
    return {f"mmpack.multimethod.{name}" for name in re.findall(r"`(\w+)`", BESIDE[0])}


def room(name: str) -> str | None:
    """The room that a module is of, or is."""
    return next((r for r in PLACES if name == r or name.startswith(r + ".")), None)


def is_module(name: str) -> bool:
    path = ROOT / name.removeprefix("mmpack.").replace(".", "/")
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def imported(source: str) -> Iterator[str]:
    """Our modules that a file imports, wherever in it, those for the sake of types too. What is
    imported from a module may be a module itself."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if is_module(name) else node.module for name in whole}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    yield from sorted(name for name in names if name.partition(".")[0] == "mmpack")


FILES = {
    module(str(path.relative_to(ROOT))).removesuffix(".__init__"): path
    for path in [*ROOT.glob("wrappers/*.py"), *ROOT.glob("multimethod/**/*.py")]
}


def wrong(name: str, source: str) -> list[str]:
    """What a module of this name may not import and does."""
    found = []
    own = room(name)
    for other in imported(source):
        theirs = room(other)
        if own is None and name in beside() - {CHECK}:
            right = theirs is None and other in beside() - {CHECK}
        elif theirs is None:
            right = other in beside() - {CHECK}
        else:
            below = (own is not None and PLACES[theirs] > PLACES[own]) or theirs == "mmpack.cli"
            right = not below or (own, other) in ALLOWED
        if not right:
            found.append(f"{name} imports {other}")
    return found


def test_the_table_and_the_list_name_everything_that_is_there() -> None:
    assert len(ROOMS) > 10 and ROOMS[0] == "cli.py"
    assert all((ROOT / place).exists() for place in ROOMS)
    assert all(name in FILES for name in beside())
    homeless = {name for name in FILES if room(name) is None} - beside()
    assert homeless == {"mmpack.multimethod"}  # the public names, found at first use


def test_no_room_imports_from_one_below_it() -> None:
    sources = {name: path.read_text() for name, path in FILES.items()}
    del sources["mmpack.multimethod"]
    assert [mistake for name, text in sources.items() for mistake in wrong(name, text)] == []


def test_the_one_exception_is_used() -> None:
    targets = [name for name in FILES if name.startswith("mmpack.multimethod.targets.")]
    for _, exception in ALLOWED:
        assert any(exception in imported(FILES[name].read_text()) for name in targets)
    assert "`targets/`, which reads the types of `spec/records.py`" in TEXT


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("mmpack.multimethod.link.x", "from mmpack.multimethod.runtime import Methods", 1),
        ("mmpack.multimethod.runtime.x", "from mmpack.multimethod.link import link", 0),
        ("mmpack.multimethod.spec.x", "def f():\n    import mmpack.multimethod.compile.unit", 1),
        ("mmpack.multimethod.targets.x", "from mmpack.multimethod.spec.records import Spec", 0),
        ("mmpack.multimethod.targets.x", "from mmpack.multimethod.spec import records", 0),
        ("mmpack.multimethod.targets.x", "from mmpack.multimethod.spec import load_spec", 1),
        ("mmpack.multimethod.verify.x", "import mmpack.cli", 1),
        ("mmpack.multimethod.report.x", "from mmpack.multimethod.check import check", 1),
        ("mmpack.multimethod.report.x", "from mmpack.multimethod import build", 1),
        ("mmpack.multimethod.scratch", "from mmpack.multimethod.link import link", 1),
        ("mmpack.multimethod.scratch", "from mmpack.multimethod import errors", 0),
        ("mmpack.multimethod.check", "from mmpack.multimethod.driver import examine", 0),
    ],
)
def test_what_goes_the_wrong_way_is_found(name: str, source: str, count: int) -> None:
    assert len(wrong(name, source)) == count
