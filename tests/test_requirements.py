"""What is imported is what setup.cfg has installed, neither less nor more."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from mmpack.multimethod.report.doctor import PACKAGES
from mmpack.multimethod.targets.qnn_sdk import BESIDES, PACKAGE, WORKS
from mmpack.multimethod.versions import SUPPORTED, require_supported, requirement

ROOT = Path(__file__).parent.parent
SOURCES = ("multimethod", "wrappers", "examples", "cli.py")
COMMANDS = {"pytest-benchmark", "pytest-xdist", "mmpack"}
"""Listed for what they do to a command, whether or not something imports them; our own other
extras."""

PEERS = {"gguf", "llama_cpp"}
"""What `bench/peers` compares mmpack with: installed, and compiled, by whoever runs that."""


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
    """Or is of an extra, for what not everybody wants."""
    modules = third_party(*SOURCES)
    assert {"torch", "executorch", "sympy"} <= modules.keys()
    extra = listed("options.extras_require", "hf") | listed("options.extras_require", "cluster")
    assert unlisted(modules, extra | listed("options", "install_requires")) == []


def test_what_only_an_extra_installs_is_not_imported_where_a_module_begins() -> None:
    extra = listed("options.extras_require", "hf") | listed("options.extras_require", "cluster")
    files = {path for place in SOURCES for path in python_files(place)}
    for path in files:
        body = ast.parse(path.read_bytes()).body
        top = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
        source = "\n".join(map(ast.unparse, top))
        names = {name for name in extra if re.search(rf"^(from|import) {name}\b", source, re.M)}
        assert not names, path


def test_every_import_of_the_tests_is_installed() -> None:
    test = listed("options.extras_require", "test")
    test |= listed("options.extras_require", "hf") | listed("options.extras_require", "cluster")
    modules = third_party("tests")
    assert {"pytest", "hypothesis"} <= modules.keys()
    assert modules.keys() >= PEERS
    for peer in PEERS:
        del modules[peer]
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


def test_the_versions_that_are_required_are_those_that_pip_is_told() -> None:
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    assert set(SUPPORTED) == {"torch", "executorch"}
    for package in SUPPORTED:
        (line,) = [line.strip() for line in lines if re.match(rf" +{package}[<>=~!]", line)]
        assert requirement(package) == line
    assert {requirement("torch"), requirement("executorch")} == {
        "torch>=2.13,<2.14",
        "executorch>=1.5.1,<1.6",
    }


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that are found instead of those installed; None for a package that is missing."""
    versions: dict[str, str | None] = {"torch": "2.13.0", "executorch": "1.5.1"}
    real = metadata.version

    def version(package: str) -> str:
        if package not in versions:
            return real(package)
        if (told := versions[package]) is None:
            raise metadata.PackageNotFoundError(package)
        return told

    monkeypatch.setattr(metadata, "version", version)
    return versions


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("torch", "2.13.0"),
        ("torch", "2.13"),
        ("torch", "2.13.0+cpu"),
        ("torch", "2.13.1+cu130"),
        ("torch", "2.13.12"),
        ("executorch", "1.5.1"),
        ("executorch", "1.5.2+cpu"),
        ("executorch", "1.5.10"),
    ],
)
def test_a_right_version_is_taken(package: str, version: str, found: dict[str, str | None]) -> None:
    found[package] = version
    require_supported()


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("torch", "2.12.1"),
        ("torch", "2.9.1+cpu"),
        ("torch", "2.14.0"),
        ("torch", "2.14"),
        ("torch", "3.0"),
        ("torch", "unknown"),
        ("torch", None),
        ("executorch", "1.5.0"),
        ("executorch", "1.5"),
        ("executorch", "1.4.1"),
        ("executorch", "1.6.0"),
        ("executorch", "1.6.0a0+cpu"),
        ("executorch", "2.0"),
        ("executorch", None),
    ],
)
def test_a_wrong_version_is_one_line_with_what_is_needed_found_and_to_be_done(
    package: str, version: str | None, found: dict[str, str | None]
) -> None:
    found[package] = version
    needed = {"torch": "torch>=2.13,<2.14", "executorch": "executorch>=1.5.1,<1.6"}[package]
    with pytest.raises(ImportError) as error:
        require_supported()
    assert str(error.value) == (
        f"mmpack needs {needed}, found {version or 'none'}: pip install '{needed}'"
    )
