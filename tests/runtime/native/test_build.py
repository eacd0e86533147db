"""The engine is compiled once, whole or not at all; without it, the stock one and one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mmpack.multimethod import CallError, TargetError, load
from mmpack.multimethod.runtime import engines
from mmpack.multimethod.runtime.engines import _automatic, choose
from mmpack.multimethod.runtime.native import build
from mmpack.multimethod.runtime.native.engine import NativeEngine
from mmpack.multimethod.runtime.stock import StockEngine


@pytest.fixture(autouse=True)
def elsewhere(engine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the engine is chosen as users have it chosen."""
    monkeypatch.setenv("MMPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "_automatic", _automatic)
    monkeypatch.setattr(engines, "_told", set())
    return tmp_path / "cache"


def compiler(folder: Path, does: str) -> Path:
    """A program that notes each time that it is started, and then does something."""
    path = folder / "fake-g++"
    path.write_text(f"#!/bin/sh\necho started >> {folder}/started\n{does}\n")
    path.chmod(0o755)
    return path


def starts(folder: Path) -> int:
    return (folder / "started").read_text().count("started")


def test_without_a_compiler_it_is_the_stock_engine_and_one_line(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    for _ in range(2):
        program = load(toy)
        assert isinstance(program._engine, StockEngine)
    assert program.run_method("add", torch.ones(2)).total.tolist() == [8.0, 0.0]
    assert capfd.readouterr() == (
        "",
        "mmpack: the native engine needs a C++ compiler (g++, clang++, c++), and CXX is "
        "'no-such-compiler -m64', which is not found: apt-get install g++; until then methods run "
        "one at a time, with copies, in the stock engine\n",
    )
    with pytest.raises(TargetError, match="the native engine needs a C"):
        load(toy, engine="native")


def test_no_compiler_of_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TargetError, match="and none of them is found: apt-get install g"):
        choose("native")


def test_a_compiler_that_fails_is_not_asked_again_unless_the_engine_is(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path, "echo no such header >&2; exit 1")))
    assert isinstance(load(toy)._engine, StockEngine)
    once = starts(tmp_path)
    out, err = capfd.readouterr()
    building, lost = err.splitlines()
    assert building == "mmpack: building the native engine, about 15 s, once"
    assert lost.startswith("mmpack: the native engine does not compile with ")
    (log,) = (tmp_path / "cache" / "native").glob("*.log")
    assert f"its log: {log}; until then" in lost and out == ""
    assert log.read_text().count("no such header") == once == len(build.UNITS)
    assert isinstance(load(toy)._engine, StockEngine)
    assert starts(tmp_path) == once and str(log) in capfd.readouterr().err
    with pytest.raises(TargetError, match="does not compile"):
        load(toy, engine="native")
    assert starts(tmp_path) == 2 * once
    assert not [*(tmp_path / "cache" / "native").glob("*.tmp")] and build.built() is None


def test_those_who_want_it_at_the_same_time_wait_for_the_one_who_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 'while [ "$1" != -o ]; do shift; done; sleep 0.05; echo made > "$2"'
    monkeypatch.setenv("CXX", str(compiler(tmp_path, writes)))
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(build.build) for _ in range(4)]}
    assert starts(tmp_path) == len(build.UNITS) + 1
    assert paths == {build.built()}
    assert [path.read_text() for path in paths] == ["made\n"]


def test_what_does_not_load_is_told(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    monkeypatch.setenv("CXX", str(compiler(tmp_path, writes)))
    with pytest.raises(TargetError, match="the native engine cannot be loaded: "):
        load(toy, engine="native")
    assert isinstance(load(toy)._engine, StockEngine)


def test_other_sources_are_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._key()
    assert build._key() == before
    shutil.copytree(build.HERE, tmp_path / "sources")
    monkeypatch.setattr(build, "HERE", tmp_path / "sources")
    try:
        build._key.cache_clear()
        assert build._key() == before
        with (tmp_path / "sources" / "method.h").open("a") as file:
            file.write("\n")
        build._key.cache_clear()
        assert build._key() != before
    finally:
        build._key.cache_clear()


def test_an_engine_that_there_is_not(toy: Path) -> None:
    with pytest.raises(CallError) as raised:
        load(toy, engine="stick")  # type: ignore[arg-type]
    assert str(raised.value) == (
        "engine='stick': expected one of 'auto', 'native', 'stock'; did you mean 'stock'?"
    )
    with pytest.raises(CallError, match="engine='zzz': expected one of 'auto', 'native', 'stock'"):
        choose("zzz")


def test_threads_that_there_are_not(toy: Path) -> None:
    for wrong in (0, 2):
        with pytest.raises(CallError, match=f"threads={wrong}: expected 1, or None"):
            load(toy, engine="native", threads=wrong)
    with pytest.raises(CallError, match="the stock engine always runs in all of the pool"):
        load(toy, engine="stock", threads=1)


def test_a_program_keeps_its_engine(
    toy: Path,
    native_engine: type[NativeEngine],
    build_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMPACK_CACHE", str(build_cache))
    for name, kind in (("stock", StockEngine), ("native", native_engine)):
        program = load(toy, engine=name)  # type: ignore[arg-type]
        assert type(program._engine) is kind
        program.reset()
        assert type(program._engine) is kind


def test_a_wheel_has_the_sources(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    for name in ("setup.cfg", "pyproject.toml", "cli.py", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    for name in ("multimethod", "wrappers", "examples"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    packed = tmp_path / "build" / "lib" / "mmpack" / "multimethod" / "runtime" / "native"
    names = {path.name for path in build.HERE.iterdir() if path.is_file()}
    assert {path.name for path in packed.iterdir()} == names and "method.cpp" in names
