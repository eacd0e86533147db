"""QNN methods in the simulator, beside the CPU's: in this process, and in fresh ones that import
and load things in every order."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import Program, load
from mmpack.multimethod.link import PteFile
from mmpack.multimethod.runtime.contexts import read_contexts
from mmpack.multimethod.targets.qnn_sdk import NEEDED, find_sdk

from ..compile.projects import Project
from .qnn import needs_qnn

pytestmark = needs_qnn
both = pytest.mark.usefixtures("both_engines")

X = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
CLOSE = {"rtol": 0, "atol": 3e-3}
"""What float16 leaves of numbers around 1."""
MODULES = {"mlp": "mlp", "split": "split", "cpu": "mlp"}


def is_all(outputs: Any, number: float) -> bool:
    """Whether a `count` or `counted` is this number throughout."""
    return torch.allclose(outputs.y, torch.full((1, 8), float(number)), rtol=1e-2, atol=1e-3)


def right(program: Program, model: torch.nn.Module, *names: str) -> bool:
    """Whether methods compute what the model's modules do, in eager PyTorch."""
    for name in names or MODULES:
        expected = model.get_submodule(MODULES[name])(X)
        if not torch.allclose(program.run_method(name, X).y, expected, **CLOSE):
            return False
    return True


@pytest.fixture(scope="module")
def model(npu: Project) -> torch.nn.Module:
    return npu.load_model().requires_grad_(False)


@both
@pytest.mark.parametrize("order", ["mlp split cpu", "cpu split mlp", "split cpu mlp"])
def test_methods_of_both_run_in_any_order(npu: Project, model: Any, order: str) -> None:
    assert right(load(npu.output), model, *order.split())


@both
def test_methods_for_two_chips_run_beside_each_other(npu: Project, model: Any) -> None:
    program = load(npu.output)
    half = X[:, :4]
    torch.testing.assert_close(program.run_method("older", half).y, model.mlp(half), **CLOSE)
    torch.testing.assert_close(program.run_method("mlp", X).y, model.mlp(X), **CLOSE)


@both
def test_integer_inputs_find_their_rows(npu: Project, model: Any) -> None:
    rows = torch.tensor([[0, 31, 7, 7, 1, 2, 3, 30]])
    out = load(npu.output).run_method("table", rows).out
    torch.testing.assert_close(out, model.table(rows), **CLOSE)


@both
def test_state_that_a_qnn_method_writes_is_the_program_s(npu: Project) -> None:
    """Left to itself, executorch gives the buffer to the delegate, where no other method sees it
    and nothing resets it."""
    program = load(npu.output)
    ones = torch.ones(1, 8)
    assert is_all(program.run_method("count", ones), 2)
    assert is_all(program.run_method("count", ones), 4)
    assert is_all(program.run_method("counted"), 4)
    program.reset()
    assert is_all(program.run_method("counted"), 0)
    assert is_all(program.run_method("count", ones), 2)


@both
def test_one_program_loaded_twice_is_two(npu: Project, model: Any) -> None:
    """The runtime knows a context by a number in the file. It would give the second program the
    first one's, and destroy it with either."""
    first, second = load(npu.output), load(npu.output)
    ones = torch.ones(1, 8)
    assert right(first, model) and right(second, model)
    assert is_all(first.run_method("count", ones), 2)
    assert is_all(second.run_method("count", ones), 2)
    del first
    gc.collect()
    third = load(npu.output)
    assert right(second, model) and right(third, model)
    second.reset()
    assert right(second, model) and right(third, model)
    del second
    assert right(third, model)


@both
def test_programs_loaded_from_several_threads_do_not_share(npu: Project, model: Any) -> None:
    results: list[bool] = []

    def work() -> None:
        for _ in range(3):
            results.append(right(load(npu.output), model, "mlp"))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 9


def test_every_qnn_delegate_has_a_name_of_its_own(npu: Project) -> None:
    with PteFile.open(npu.output) as file:
        names = list(read_contexts(file).values())
        count = sum(d.id == "QnnBackend" for plan in file.plans for d in plan.delegates or ())
    assert len(names) == len(set(names)) == count >= 5


LOAD = """
import sys
from mmpack.multimethod import load
program = load(sys.argv[1], engine="stock")
def run(*names):
    import torch
    for name in names:
        out = program.run_method(name, torch.ones(1, 8, 64)).y
        expected = torch.load(sys.argv[2])[name]
        assert torch.allclose(out, expected, rtol=0, atol=3e-3), name
"""
HEAVY = """
import torch
net = torch.nn.Sequential(torch.nn.Conv1d(64, 256, 9), torch.nn.ReLU(), torch.nn.Conv1d(256, 8, 9))
for _ in range(3):
    net(torch.randn(16, 64, 512)).square().mean().backward()
torch.randn(512, 512) @ torch.randn(512, 512)
torch.linalg.svd(torch.randn(128, 128))
"""
THROW = """
import torch
for _ in range(2):
    try:
        torch.ones(2, 3) @ torch.ones(2, 3)
    except RuntimeError:
        continue
    raise AssertionError
"""
LOWER = """
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.runtime import Runtime
ep = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(1, 4),))
made = to_edge_transform_and_lower({"f": ep}, partitioner={"f": [XnnpackPartitioner()]})
stock = Runtime.get().load_program(made.to_executorch().buffer).load_method("f")
stock.execute([torch.ones(1, 4)])
"""
NATIVE_LATE = """
import torch
stock, native = (load(sys.argv[1], engine=name) for name in ("stock", "native"))
for name in ("mlp", "split", "cpu"):
    x = torch.ones(1, 8, 64)
    assert torch.equal(stock.run_method(name, x).y, native.run_method(name, x).y)
    try:
        native[name].prepare()([torch.ones(3)])
    except RuntimeError:
        continue
    raise AssertionError
"""
ORDERS = {
    "nothing before": f"{LOAD}\nrun('mlp', 'split', 'cpu')",
    "torch first, and heavily used": f"{HEAVY}\n{LOAD}\nrun('cpu', 'mlp')\n{HEAVY}\nrun('split')",
    "executorch's runtime first": "from executorch.runtime import Runtime\nRuntime.get()\n"
    f"{LOAD}\nrun('mlp', 'cpu')",
    "executorch's compiler first": f"{LOWER}\n{LOAD}\nrun('cpu', 'split')",
    "torch and executorch last": f"{LOAD}\nrun('mlp')\n{THROW}\n{HEAVY}\n{LOWER}\n"
    "run('mlp', 'cpu')",
    "exceptions of C++ before and after": f"{THROW}\n{LOAD}\nrun('mlp')\n{THROW}\nrun('split')",
    "the native engine last": f"{LOAD}\nrun('mlp')\n{THROW}\n{NATIVE_LATE}\n{THROW}",
    "a second program, the first gone": f"{LOAD}\nrun('mlp')\n{LOAD}\nrun('cpu', 'mlp')\n"
    "program.reset()\nrun('split', 'mlp')",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_imports_and_loads_does_not_matter(
    npu: Project, model: Any, tmp_path: Path, order: str, native_engine: object
) -> None:
    ones = torch.ones(1, 8, 64)
    expected = {name: model.get_submodule(path)(ones) for name, path in MODULES.items()}
    torch.save(expected, tmp_path / "expected.pt")
    script = [sys.executable, "-W", "ignore", "-c", ORDERS[order]]
    arguments = [str(npu.output), str(tmp_path / "expected.pt")]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout + done.stderr
    assert "qnn" not in printed.lower()
    if "from executorch" not in ORDERS[order]:  # which says something when it is imported
        assert printed == ""


STOCK = """
import ctypes, sys, torch
from executorch.runtime import Runtime
runtime = Runtime.get()
for library in sys.argv[3:]:
    ctypes.CDLL(library)
program = runtime.load_program(sys.argv[1])
for name, expected in torch.load(sys.argv[2]).items():
    (y,) = program.load_method(name).execute([torch.ones(1, 8, 64)])
    assert torch.allclose(y, expected, rtol=0, atol=3e-3), name
assert "mmpack" not in sys.modules
"""


def test_the_stock_runtime_runs_it_as_the_readme_says(
    npu: Project, model: Any, tmp_path: Path
) -> None:
    ones, sdk = torch.ones(1, 8, 64), find_sdk()
    expected = {name: model.get_submodule(path)(ones) for name, path in MODULES.items()}
    torch.save(expected, tmp_path / "expected.pt")
    arguments = [npu.output, tmp_path / "expected.pt", *map(sdk.library, NEEDED)]
    script = [sys.executable, "-W", "ignore", "-c", STOCK, *map(str, arguments)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
