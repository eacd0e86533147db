"""How many graphs QNN's simulator holds, and what is said where it holds no more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmpack.multimethod import TargetError
from mmpack.multimethod.targets.qnn import Qnn

from ..compile.projects import Project
from .qnn import needs_qnn

pytestmark = needs_qnn


def test_six_graphs_of_five_methods_are_counted(
    npu: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Qnn, "room", 5 * Qnn.takes(0) + (1 << 20))
    with pytest.raises(TargetError, match="5 methods for qnn are 6 graphs, which take 63 MB"):
        npu.build(output=npu.folder / "other.pte")


FILL = """
import gc, sys, torch
from mmpack.multimethod import ExecutionError, load, verify
from mmpack.multimethod.link import PteFile
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.targets.qnn import Qnn

spec, path = sys.argv[1:]
with PteFile.open(path) as file:
    data = {plan.name: [e.size for e in delegate_extents(file, plan)] for plan in file.plans}
names = ["mlp", "split", "older", "table"]  # which have no state
programs, taken, methods = [], 0, 0
try:
    while True:
        programs.append(load(path, mmap=True))
        for name in names:
            programs[-1][name].prepare()
            taken += sum(Qnn.takes(size) for size in data[name])
            methods += 1
except ExecutionError as error:
    told = str(error)
assert abs(taken / Qnn.room - 1) < 0.01, (taken, Qnn.room)
assert told == (
    f"{name}: QNN's simulator has no room for it: what a process has loaded takes 10 MiB a graph, "
    f"and its data, of 3.4 GiB; {methods} methods are loaded: free some (`program.unload(name)`), "
    "or run them in several processes"
), told

# What is loaded still runs, and what was freed is loaded again where it is called.
first, x = programs[0], torch.ones(1, 8, 64)
expected = first.run_method("mlp", x).y
first.unload("mlp")
assert torch.equal(first.run_method("mlp", x).y, expected)

# Verifying a program takes no more room than its largest method, two graphs, and those with state.
for name in ("mlp", "split"):
    first.unload(name)
verify(path, spec)

# Programs that nobody refers to any more make room, be they collected or not.
for name in ("mlp", "split"):
    first[name].prepare()
gc.disable()
programs.clear()
del first
again = load(path, mmap=True)
for name in names:
    again[name].prepare()
"""


def test_the_room_is_as_large_as_documented(npu: Project) -> None:
    script = [sys.executable, "-W", "ignore", "-c", FILL, str(npu.path), str(npu.output)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
