"""`why`: what a build says of a method that it compiles, or takes from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mmpack.cli import main
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.costs import Cost
from mmpack.multimethod.compile.earlier import earlier, last_costs, reasons, told
from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.progress import Silent

MODEL = """
class Model(nn.Module):
    def forward(self, x):
        return x + 1
"""
SPEC = """
methods:
  f: {module: ".", target: plain, inputs: {x: [2]}}
  layers.0.g: {module: ".", target: plain, inputs: {x: [3]}}
"""
NEVER = "the cache has no object of this method: it was not built yet, or was pruned"


class Listener(Silent):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def stage(self, name: str, total: int) -> None:
        self.told.append(name)

    def start(self, method: str) -> None:
        self.told.append(("start", method))

    def explain(self, method: str, reasons: Sequence[str]) -> None:
        self.told.append((method, *reasons))


@pytest.fixture
def made(project: Any, tmp_path: Path) -> Any:
    project.cache = tmp_path / "cache"
    return project.model(MODEL).spec(SPEC)


def asked(project: Any, *why: str, **options: Any) -> list[Any]:
    listener = Listener()
    project.build(progress=listener, why=why, **options)
    begin = listener.told.index("compile")
    return listener.told[begin : begin + 1 + len(why)]


def test_a_build_says_it_before_it_compiles(made: Any) -> None:
    names = ("layers.0.g", "f")
    assert asked(made, *names) == ["compile", ("layers.0.g", NEVER), ("f", NEVER)]
    assert asked(made, *names) == ["compile", ("layers.0.g",), ("f",)]
    made.spec(SPEC.replace("[3]", "[4]"))
    was = '{"dtype": "float32", "shape": [3]}'
    is_ = '{"dtype": "float32", "shape": [4]}'
    change = ("layers.0.g", f"input 'x' is {is_}, was {was}")
    assert asked(made, *names) == ["compile", change, ("f",)]
    made.model(MODEL.replace("x + 1", "x + 2"))
    code = "code of Model in model.py changed"
    # Of two objects of a method, the nearer one.
    assert asked(made, *names) == ["compile", ("layers.0.g", code), ("f", code)]


@pytest.mark.parametrize("end", ["pte", "json"])
def test_damage_is_told_apart_from_change(made: Any, end: str) -> None:
    made.build()
    for path in (made.cache / "objects").glob(f"*.{end}"):
        path.write_bytes(path.read_bytes()[:-1])
    assert asked(made, "f") == ["compile", ("f", "its object in the cache is damaged")]
    assert asked(made, "f") == ["compile", ("f",)]


def test_without_verification_the_cache_is_not_asked(made: Any) -> None:
    made.build()
    (_, (_, reason)) = asked(made, "f", verify=False)
    assert reason.startswith("the cache is not asked")


def test_a_method_that_is_not_there_is_an_error_with_the_nearest(made: Any) -> None:
    with pytest.raises(SpecError, match=r"spec.yaml has no method 'layers.1.g'; did you mean 'la"):
        made.build(why=["layers.1.g"])
    assert not made.output.exists()


def test_the_command_prints_it(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made.build()
    args = ["build", str(made.path), "-o", str(made.output), "--cache", str(made.cache)]
    result = CliRunner().invoke(main, [*args, "--why", "f", "--why", "layers.0.g"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("why")]
    assert lines == [f"why {name}: it is in the cache" for name in ("f", "layers.0.g")]
    both = CliRunner().invoke(main, [*args, "--why", "f", "--quiet"])
    assert both.exit_code == 2 and "--why says something" in both.output


def put(cache: Cache, key: str, method: str, parts: Any, cost: Cost) -> None:
    made = cache.scratch(key)
    made.write_bytes(b"object")
    cache.put_object(key, made, {}, method, "xnnpack", told(parts, cost))


def test_the_nearest_is_the_one_with_fewest_differences(tmp_path: Path) -> None:
    cost = Cost("xnnpack", 100, 1.5, 10**9)
    with Cache(tmp_path) as cache:
        put(cache, "a", "f", {"dim": {"n": "1", "m": "1"}}, cost)
        put(cache, "b", "f", {"dim": {"n": "2", "m": "1"}}, cost)
        put(cache, "c", "g", {"dim": {"n": "3", "m": "3"}}, Cost("plain", 1))
        cache.put_object("old", _object(cache), {}, "f", "xnnpack")  # nothing is known of it
        found = earlier(cache)
        assert {name: {one.key for one in made} for name, made in found.items()} == {
            "f": {"a", "b"},
            "g": {"c"},
        }
        parts = {"dim": {"n": "2", "m": "2"}}
        assert reasons(cache, "d", parts, found["f"]) == ["dim 'm' is 2, was 1"]
        assert last_costs(found) == {"f": cost, "g": Cost("plain", 1)}


def _object(cache: Cache) -> Path:
    path = cache.scratch("made")
    path.write_bytes(b"object")
    return path
