"""The runtime without the compiler, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
from mmpack.multimethod.stock_runtime import binding, stock_runtime
registered = stock_runtime().backend_registry.registered_backend_names
assert "executorch.exir" not in sys.modules and "torch._inductor.lowering" not in sys.modules
import executorch.exir
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._warnings import ExperimentalWarning
from executorch.runtime import Runtime
import executorch.extension.pybindings.portable_lib as theirs
assert theirs is binding()
assert sorted(Runtime.get().backend_registry.registered_backend_names) == sorted(registered)
assert executorch.exir.__file__ and "XnnpackBackend" in registered
"""
AFTERWARDS = """
import executorch.exir
from mmpack.multimethod.stock_runtime import stock_runtime
assert stock_runtime() and executorch.exir.to_edge and executorch.exir.__file__
import sys
assert sys.modules["executorch.exir"] is executorch.exir
"""
LOADED = """
import sys
import torch
from mmpack.multimethod import load
result = load(sys.argv[1], engine=sys.argv[2]).run_method("blend", *map(torch.tensor, (
    [[1.0] * 3] * 2, [[2.0] * 3] * 2, [2, 0, 0, 1])))
assert result[0].numel() and "executorch.exir" not in sys.modules
"""


TOGETHER = """
import sys, threading, time
import torch
from mmpack.multimethod.stock_runtime import binding
import executorch
wrong, begun = [], threading.Barrier(9)
def work(number):
    begun.wait()
    time.sleep(0.003 * number)
    try:
        if number % 2:
            from executorch.exir import to_edge
        assert binding()._get_operator_names()
    except BaseException as error:
        wrong.append(f"{number}: {error!r}")
threads = [threading.Thread(target=work, args=(number,)) for number in range(9)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
import executorch.exir
assert executorch.exir.to_edge is sys.modules["executorch.exir"].to_edge
"""
ALONE = """
import sys
from mmpack.multimethod.stock_runtime import binding
binding()
assert not hasattr(sys.modules["executorch"], "exir")
import executorch.exir._warnings
assert executorch.exir.to_edge and executorch.exir._warnings.ExperimentalWarning
"""


def test_several_threads_at_once() -> None:
    """Some of which want the compiler."""
    subprocess.run([sys.executable, "-c", TOGETHER], check=True)


def test_nothing_is_left_in_its_place() -> None:
    subprocess.run([sys.executable, "-c", ALONE], check=True)


def test_the_compiler_is_not_imported_and_can_be_afterwards() -> None:
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", WITHOUT], check=True)


def test_a_compiler_that_is_there_stays() -> None:
    subprocess.run([sys.executable, "-c", AFTERWARDS], check=True)


@pytest.mark.parametrize("engine", ["stock", "auto"])
def test_a_program_is_run_without_it(toy: Path, engine: str) -> None:
    subprocess.run([sys.executable, "-c", LOADED, str(toy), engine], check=True)
