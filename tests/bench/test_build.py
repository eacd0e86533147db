"""What a build costs: one method, all of an example, and what is left of it when nothing changed.

pytest tests/bench/test_build.py --benchmark-only
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod import build
from mmpack.multimethod.compile.cache import Cache
from mmpack.multimethod.compile.calls import NO_EXAMPLES
from mmpack.multimethod.compile.fingerprint import fingerprints
from mmpack.multimethod.compile.means import Means
from mmpack.multimethod.compile.model import load_model, state_names
from mmpack.multimethod.compile.objects import Compiler
from mmpack.multimethod.compile.state import decide
from mmpack.multimethod.compile.unit import make_units
from mmpack.multimethod.progress import Silent
from mmpack.multimethod.spec import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC = EXAMPLES / "nested_matmul" / "nested_matmul.yaml"


@pytest.fixture
def cold(tmp_path: Path) -> Any:
    """Empties the cache before every round."""
    cache = tmp_path / "cache"

    def setup() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    return cache, setup


def test_cold_build(benchmark: Any, cold: Any, tmp_path: Path) -> None:
    cache, setup = cold
    benchmark.pedantic(
        lambda: build(SPEC, tmp_path / "out.pte", cache=cache), setup=setup, rounds=3
    )


def test_warm_build(benchmark: Any, build_cache: Path, tmp_path: Path) -> None:
    build(SPEC, tmp_path / "out.pte", cache=build_cache)
    report = benchmark.pedantic(
        lambda: build(SPEC, tmp_path / "out.pte", cache=build_cache), rounds=5
    )
    assert report.compiled == 0


def test_cold_against_warm(benchmark: Any, tmp_path: Path) -> None:
    """The ratio is in the report's extra information: `cold / warm`."""
    from time import perf_counter

    def timed() -> float:
        begin = perf_counter()
        build(SPEC, tmp_path / "out.pte", cache=tmp_path / "cache")
        return perf_counter() - begin

    cold_seconds = timed()
    warm_seconds = min(benchmark.pedantic(timed, rounds=1), timed(), timed())
    benchmark.extra_info["cold / warm"] = round(cold_seconds / warm_seconds, 1)


def test_time_per_method(benchmark: Any, cold: Any, tmp_path: Path) -> None:
    """Exporting and lowering twelve methods of the adder with one worker, start included."""
    cache, setup = cold
    spec_file = load_spec(EXAMPLES / "adder" / "adder.yaml")
    model = load_model(spec_file)
    units = {n: u for n, u in make_units(spec_file, model).items() if n.endswith(".chunk")}

    def compile_all() -> None:
        with Cache(cache) as store:
            names = state_names(model)
            compiler = Compiler(units, names, fingerprints(units, names), store, Silent())
            facts = compiler.export_all()
            state = decide(spec_file, {name: f.touched for name, f in facts.items()})
            signatures = {name: f.signature for name, f in facts.items()}
            compiler.compile_all(state, Means(), signatures, NO_EXAMPLES)

    benchmark.pedantic(compile_all, setup=setup, rounds=1)
    benchmark.extra_info["methods"] = len(units)
    benchmark.extra_info["seconds a method"] = round(benchmark.stats["mean"] / len(units), 2)
