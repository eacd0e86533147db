"""What is imported is what setup.cfg has installed, neither less nor more."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mmpack.multimethod.report.doctor import PACKAGES
from mmpack.multimethod.targets.qnn_sdk import BESIDES, PACKAGE, WORKS

ROOT = Path(__file__).parent.parent
SOURCES = ("multimethod", "wrappers", "examples", "cli.py")
COMMANDS = {"pytest-benchmark", "mmpack"}
"""Listed for what they do to a command, whether or not something imports them; our own other
extras."""


def python_files(name: str) -> list[Path]:
    path = ROOT / name
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it, by their full names."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def third_party(*places: str) -> dict[str, Path]:
    """Top-level modules that are neither Python's nor ours, each with a file that imports it."""
    files = [file for place in places for file in python_files(place)]
    ours = {"mmpack", *(file.stem for place in places for file in python_files(place))}
    found = {module.partition(".")[0]: file for file in files for module in imported(file)}
    return {m: f for m, f in found.items() if m not in sys.stdlib_module_names | ours}


def listed(section: str, key: str) -> set[str]:
    """The names of the packages in a list of requirements."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config[section][key].split("\n")
    return {normal(re.split(r"[<>=!~;\[]", line)[0]) for line in lines if line}


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


DISTRIBUTIONS = metadata.packages_distributions()


def packages(module: str) -> set[str]:
    """The packages that a module may come from; several share the name `ruamel`."""
    return {normal(name) for name in DISTRIBUTIONS.get(module, [module])}


def unlisted(modules: dict[str, Path], known: set[str]) -> list[str]:
    return [f"{m} ({file})" for m, file in modules.items() if not packages(m) & known]


def test_every_import_is_installed() -> None:
    modules = third_party(*SOURCES)
    assert {"torch", "executorch", "sympy"} <= modules.keys()
    assert unlisted(modules, listed("options", "install_requires")) == []


def test_every_import_of_the_tests_is_installed() -> None:
    test = listed("options.extras_require", "test")
    modules = third_party("tests")
    assert {"pytest", "hypothesis"} <= modules.keys()
    assert unlisted(modules, test | listed("options", "install_requires")) == []


def test_the_qnn_extra_is_what_its_target_asks_for() -> None:
    assert listed("options.extras_require", "qnn") == set(map(normal, (PACKAGE, *BESIDES)))
    text = (ROOT / "setup.cfg").read_text()
    assert f"{PACKAGE}=={WORKS};" in text


def test_doctor_shows_what_is_installed() -> None:
    assert {"mmpack", *listed("options", "install_requires")} == set(map(normal, PACKAGES))


def test_nothing_is_installed_that_nobody_imports() -> None:
    used = {p for m in third_party(*SOURCES) for p in packages(m)}
    assert listed("options", "install_requires") - used == set()
    used = {p for m in third_party("tests") for p in packages(m)}
    assert listed("options.extras_require", "test") - used - COMMANDS == set()
