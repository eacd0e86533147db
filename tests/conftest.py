"""Programs that tests share, built once a session into folders of their own."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from mmpack.multimethod.runtime.engine import Engine

HERE = Path(__file__).parent

TOY_SPEC = HERE / "runtime" / "toy" / "toy.yaml"


@pytest.fixture(scope="session", autouse=True)
def one_thread(pytestconfig: pytest.Config) -> None:
    """Eager models here are so small that threads which wait for each other take most of the time,
    five times that of one thread where the machine has other work. Benchmarks are left alone."""
    if not pytestconfig.getoption("benchmark_only"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> None:
    """What earlier modules left is dropped, and what has been imported since then is set aside:
    otherwise every collection of garbage looks at some million objects, which takes a fifth of
    the time in which methods are lowered."""
    from mmpack.multimethod.compile.worker import _forget

    _forget()
    gc.freeze()


@pytest.fixture(scope="session")
def build_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled methods that is empty when the session begins, and common to it, also
    where several processes run its tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "build-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(build_cache: Path) -> Iterator[None]:
    """What is built without being told where goes there too, in processes that tests start as
    well."""
    with patch.dict(os.environ, {"MMPACK_CACHE": str(build_cache)}):
        yield


@pytest.fixture(scope="session")
def native_engine(own_cache: None) -> type[Engine]:
    """The native engine, compiled once a session. Tests that need it fail where it does not."""
    from mmpack.multimethod.runtime.engines import choose

    return choose("native")


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` without a word about engines takes the stock one: only `runtime` and `flow` test with
    both (`both_engines`), and nothing else is to wait for a compiler."""
    from mmpack.multimethod.runtime import engines
    from mmpack.multimethod.runtime.stock import StockEngine

    monkeypatch.setattr(engines, "_automatic", lambda: StockEngine)


@pytest.fixture(params=["stock", "native"])
def both_engines(
    request: pytest.FixtureRequest, automatic: None, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The name of the engine that `load` takes in this run of a test."""
    from mmpack.multimethod.runtime import engines

    name: str = request.param
    if name == "native":
        made = request.getfixturevalue("native_engine")
        monkeypatch.setattr(engines, "_automatic", lambda: made)
    return name


@pytest.fixture(scope="session", autouse=True)
def no_spare_worker() -> Iterator[None]:
    """Builds in this process mostly lower in it too, so none begins a worker for nothing."""
    from mmpack.multimethod.driver import build

    with patch.object(build, "cores", lambda: 1):
        yield


@pytest.fixture(scope="session")
def toy_spec() -> Path:
    """The spec of `toy`."""
    return TOY_SPEC


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    """A program of five small methods on portable kernels: static, dynamic, stepped, and two that
    share state. See `runtime/toy`."""
    from mmpack.multimethod import build
    from mmpack.multimethod.compile import objects

    from .compile.projects import run_here

    path = tmp_path_factory.mktemp("toy") / "toy.pte"
    with patch.object(objects, "run_jobs", run_here):  # which saves the start of a worker
        build(TOY_SPEC, path, cache=build_cache)
    return path


@pytest.fixture(scope="session")
def two_lanes(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Path:
    """A program with flows on two lanes: `front.chunk` on `npu`, the other methods on `cpu`."""
    from .compile.projects import HEAD, Project
    from .flow.test_execute import MODEL, SPEC

    head = HEAD.replace("targets: {", "targets: {near: {backend: portable, lane: npu}, ")
    project = Project(tmp_path_factory.mktemp("two_lanes"), build_cache)
    spec = SPEC.replace("target: plain", 'target: "{t}"', 1)
    spec = spec.replace("{n: [chunk, one]}", "{n: [chunk, one], t: {cycle: [near, plain]}}", 1)
    project.model(MODEL).spec(spec, head=head).build()
    return project.output


@pytest.fixture
def toy_model() -> Any:
    """What `toy` was made from, anew for every test since it has state: the eager oracle."""
    spec = importlib.util.spec_from_file_location("toy_model", TOY_SPEC.with_name("model.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Toy().eval().requires_grad_(False)


class _Products(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a @ b, a + 1


class _Scaled(nn.Module):
    def forward(self, x: torch.Tensor, times: int, plus: float, on: bool) -> torch.Tensor:
        return x * times + plus


class _Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(x, 2)


class _Delegated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that ExecuTorch's own exporter made, without a manifest: `products` with dynamic
    shapes, `scaled` with Python scalars, `pooled` of a channels-last image, `delegated` to
    XNNPACK, the constant `get_vocab_size`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torch.export import Dim, export

    shapes = ({0: Dim("m", min=1, max=8)}, {1: Dim("n", min=1, max=9)})
    image = torch.ones(1, 2, 4, 6).to(memory_format=torch.channels_last)
    programs = {
        "products": export(
            _Products(), (torch.ones(3, 4), torch.ones(4, 5)), dynamic_shapes=shapes
        ),
        "scaled": export(_Scaled(), (torch.ones(3), 2, 1.0, True)),
        "pooled": export(_Pooled(), (image,)),
        "delegated": export(_Delegated(), (torch.ones(2, 2),)),
    }
    lowered = to_edge_transform_and_lower(
        programs,
        partitioner={"delegated": [XnnpackPartitioner()]},
        constant_methods={"get_vocab_size": 256},
    )
    path = tmp_path_factory.mktemp("foreign") / "foreign.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    return path


@pytest.fixture(scope="session")
def stock() -> Callable[[Path], Any]:
    """A program in ExecuTorch's own Python runtime, the oracle of what a file computes."""

    def load(path: Path) -> Any:
        from executorch.runtime import Runtime

        return Runtime.get().load_program(path)

    return load


@pytest.fixture
def project(tmp_path: Path, build_cache: Path) -> Any:
    """A folder to write a model and a spec into; see `compile/projects.py`."""
    from .compile.projects import Project

    folder = tmp_path / "project"
    folder.mkdir()
    return Project(folder, build_cache)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> Callable[[str], Path]:
    """The program of an example by name, built at its first use, as a user would build it."""
    from mmpack.multimethod import build

    folder = tmp_path_factory.mktemp("examples")

    def program(name: str) -> Path:
        path = folder / f"{name}.pte"
        if not path.exists():
            spec = HERE.parent / "examples" / name / f"{name}.yaml"
            build(spec, path, jobs=2, cache=build_cache)
        return path

    return program
