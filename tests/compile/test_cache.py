"""The cache on disk: whole files or none, damage noticed, and safe to share."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.errors import OutputError
from mmpack.multimethod.scratch import cache_root, scratch_folder

KEY = "0123456789abcdef"


def put(root: Path, content: bytes = b"object" * 100) -> None:
    with Cache(root) as cache:
        made = cache.scratch("made.pte")
        made.write_bytes(content)
        cache.put_object(KEY, made, {"operators": 3}, "attention", "xnnpack")
        cache.put_facts(KEY, {"shape": [1, 2]})


def test_what_was_put_is_there_for_the_next_build(tmp_path: Path) -> None:
    put(tmp_path)
    cache = Cache(tmp_path)
    found = cache.object(KEY)
    assert found is not None and found.figures == {"operators": 3}
    assert found.path.read_bytes() == b"object" * 100
    assert cache.facts(KEY) == {"shape": [1, 2]}
    assert cache.object("other") is None and cache.facts("other") is None


def test_nothing_on_its_way_is_left(tmp_path: Path) -> None:
    put(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {f"objects/{KEY}.pte", f"objects/{KEY}.json", f"facts/{KEY}.json", "lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"facts", "objects", "logs", "lock"}


@pytest.mark.parametrize("name", [f"objects/{KEY}.pte", f"objects/{KEY}.json"])
@given(cut=st.integers(0, 20), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_damaged_object_is_not_there(
    tmp_path_factory: pytest.TempPathFactory, name: str, cut: int, place: int, bit: int
) -> None:
    root = tmp_path_factory.mktemp("cache")
    put(root)
    path = root / name
    content = bytearray(path.read_bytes())
    if cut:
        path.write_bytes(content[:-cut])
    else:
        content[place % len(content)] ^= 1 << bit
        path.write_bytes(content)
    found = Cache(root).object(KEY)
    # Of a checksum's own text, upper and lower case mean the same.
    assert found is None or found.figures == {"operators": 3}
    assert found is None or found.path.read_bytes() == b"object" * 100


@given(cut=st.integers(0, 20), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_damaged_facts_are_not_there(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, bit: int
) -> None:
    root = tmp_path_factory.mktemp("cache")
    put(root)
    path = root / "facts" / f"{KEY}.json"
    content = bytearray(path.read_bytes())
    if cut:
        path.write_bytes(content[:-cut])
    else:
        content[place % len(content)] ^= 1 << bit
        path.write_bytes(content)
    assert Cache(root).facts(KEY) in (None, {"shape": [1, 2]})


@pytest.mark.parametrize("missing", [f"objects/{KEY}.pte", f"objects/{KEY}.json"])
def test_half_an_object_is_not_there(tmp_path: Path, missing: str) -> None:
    put(tmp_path)
    (tmp_path / missing).unlink()
    assert Cache(tmp_path).object(KEY) is None


def test_builds_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def many() -> None:
        try:
            for _ in range(30):
                put(tmp_path)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert Cache(tmp_path).object(KEY) is not None
    assert {path.name for path in tmp_path.iterdir()} == {"facts", "objects", "logs", "lock"}


def test_what_a_killed_build_left_goes_with_the_next_one(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # a build that is killed before it is done
        cache = Cache(tmp_path)
        cache.scratch("half.pt2").write_bytes(bytes(100))
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert len(list(tmp_path.glob(".build.*.tmp/half.pt2"))) == 1
    put(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"facts", "objects", "logs", "lock"}


def test_a_living_builds_folder_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "x") as one, scratch_folder(tmp_path, "x") as two:
        assert one != two and one.is_dir() and two.is_dir()
        with scratch_folder(tmp_path, "x.y"):
            assert one.is_dir() and two.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(OutputError, match=r"the cache .* cannot be used .*--cache or MMPACK_C"):
            Cache(place)


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with Cache(tmp_path) as cache:
        assert cache.object(KEY) is not None  # reading it is fine
        with pytest.raises(OutputError, match="cannot be used \\(Permission denied\\)"):
            cache.put_facts(KEY, {})
        with pytest.raises(OutputError, match="cannot be used \\(Permission denied\\)"):
            cache.scratch("x")


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MMPACK_CACHE", raising=False)
    assert cache_root() == tmp_path / "mmpack"
    monkeypatch.setenv("MMPACK_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_logs_of_methods_with_odd_names_are_files_of_the_cache(tmp_path: Path) -> None:
    log = Cache(tmp_path).log("../a b:" + "x" * 300, KEY)
    assert log.parent == tmp_path / "logs" and len(log.name) < 200
