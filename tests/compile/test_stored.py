"""What a cache holds, and what pruning leaves of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.stored import prune, stored
from mmpack.multimethod.errors import OutputError

DAY = 24 * 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three objects of 1000 bytes with their facts; the first was used last, the third first."""
    with Cache(tmp_path / "cache") as cache:
        for name in ("a", "b", "c"):
            made = cache.scratch(f"{name}.pte")
            made.write_bytes(name.encode() * 1000)
            cache.put_facts(f"facts-of-{name}", {})
            cache.put_object(name * 16, made, {}, f"layers.{name}", "xnnpack")
            cache.log(f"layers.{name}", name * 16).write_text("log")
    for age, name in enumerate("abc"):
        for path in (f"facts/facts-of-{name}.json", f"objects/{name * 16}.json",
                     f"objects/{name * 16}.pte", f"logs/layers.{name}-{name * 8}.log"):  # fmt: skip
            os.utime(tmp_path / "cache" / path, (0, (10 - age) * DAY))
    return tmp_path / "cache"


def names(root: Path) -> list[str | None]:
    return [entry.method for entry in stored(root) if entry.method is not None]


def on_disk(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_all_that_is_there_is_told_what_was_used_last_first(root: Path) -> None:
    assert names(root) == ["layers.a", "layers.b", "layers.c"]
    found = stored(root)
    assert sum(entry.size for entry in found) == on_disk(root)
    assert {entry.backend for entry in found} == {"xnnpack", None}


def test_of_no_cache_there_is_nothing(tmp_path: Path) -> None:
    assert stored(tmp_path / "none") == []
    assert prune(0, tmp_path / "none").removed == ()
    assert not (tmp_path / "none").exists()


def test_what_a_build_takes_is_used(root: Path) -> None:
    with Cache(root) as cache:
        assert cache.object("c" * 16) is not None
    assert names(root) == ["layers.c", "layers.a", "layers.b"]


def test_what_was_not_used_for_longest_goes_with_all_that_belongs_to_it(root: Path) -> None:
    pruned = prune(2500, root)
    assert [entry.method for entry in pruned.removed if entry.method] == ["layers.c"]
    assert on_disk(root) <= 2500 < on_disk(root) + max(entry.size for entry in pruned.removed)
    assert not [path for path in root.rglob("*") if "c" * 8 in path.name]
    assert names(root) == ["layers.a", "layers.b"]
    assert list(pruned.kept) == stored(root)


def test_a_cache_that_is_small_enough_stays(root: Path) -> None:
    before = stored(root)
    assert prune(on_disk(root), root).removed == ()
    assert stored(root) == before


def test_all_of_it(root: Path) -> None:
    prune(0, root)
    assert stored(root) == [] and on_disk(root) == 0


def test_half_an_object_is_removed_too(root: Path) -> None:
    (root / "objects" / f"{'b' * 16}.json").unlink()
    assert [entry.size for entry in stored(root) if entry.method == "?"] == [1003]
    prune(0, root)
    assert on_disk(root) == 0


def test_while_a_build_uses_it_nothing_goes(root: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from mmpack.multimethod.compile.cache import Cache\n"
        "with Cache(Path(sys.argv[1])):\n"
        "    print('open', flush=True); sys.stdin.read()\n"
    )
    before = stored(root)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as build:  # fmt: skip
        assert build.stdout is not None and build.stdout.readline() == "open\n"
        with pytest.raises(OutputError, match=r"a build is using the cache .*; prune it when"):
            prune(0, root)
        build.kill()  # a killed one holds no lock
        build.wait()
    assert stored(root) == before
    assert prune(0, root).kept == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_without_permission(root: Path) -> None:
    root.chmod(0o500)
    (root / "lock").chmod(0o400)
    with pytest.raises(OutputError, match="no permission to write in the cache"):
        prune(0, root)
