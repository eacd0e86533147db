"""Many QNN methods: in one program, and what building them takes."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mmpack.multimethod import load

from ..compile.projects import Project
from .qnn import HEAD, needs_qnn

pytestmark = [needs_qnn, pytest.mark.slow]

LAYERS = """
    class Model(nn.Module):
        def __init__(self, layers, width):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

        def forward(self, x):
            return x
"""


def layers(folder: Path, cache: Path, count: int, width: int) -> Project:
    """A project with a method for every linear layer."""
    make = f"\ndef make():\n    torch.manual_seed(0)\n    return Model({count}, {width})\n"
    methods = (
        "methods:\n"
        f"  m.{{i}}: {{each: {{i: 0..{count - 1}}}, module: 'layers.{{i}}', target: npu,"
        f" inputs: {{input: [1, {width}]}}, outputs: y}}\n"
    )
    return Project(folder, cache).model(LAYERS, make).spec(methods, HEAD)


def test_sixty_methods_are_one_program(tmp_path: Path) -> None:
    project = layers(tmp_path, tmp_path / "cache", 60, 32)
    report = project.build(workers=True)
    assert len(report.methods) == report.compiled == 60
    program, model, x = load(project.output), project.load_model(), torch.randn(1, 32)
    for i in reversed(range(60)):
        expected = model.get_submodule(f"layers.{i}")(x)
        torch.testing.assert_close(program.run_method(f"m.{i}", x).y, expected, rtol=0, atol=5e-3)


BUILD = """
import sys
from mmpack.multimethod import build
build(sys.argv[1], sys.argv[2], cache=sys.argv[3], jobs=1)
"""


def tree(pid: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [p for child in children.read_text().split() for p in tree(int(child))]
    return found


def memory(pid: int) -> int:
    """Kilobytes that a process has, its part of what it shares with others included."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def peak(folder: Path, methods: int) -> int:
    """Kilobytes that a build and its workers have together, at most."""
    folder.mkdir()
    project = layers(folder, folder / "cache", 8, 2048)
    if methods < 8:
        project.path.write_text(project.path.read_text().replace("0..7", f"0..{methods - 1}"))
    arguments = [str(project.path), str(project.output), str(project.cache)]
    most = 0
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", BUILD, *arguments]) as process:
        while process.poll() is None:
            most = max(most, sum(map(memory, tree(process.pid))))
            time.sleep(0.05)
    assert process.returncode == 0
    return most


def test_eight_methods_take_the_memory_of_one_and_a_quarter(tmp_path: Path) -> None:
    """Each has weights of its own, all as large, out of one model, which both builds have whole:
    what a model takes is not the build's to save. Everything counts, verification too."""
    one, eight = peak(tmp_path / "one", 1), peak(tmp_path / "eight", 8)
    assert eight <= 1.25 * one
