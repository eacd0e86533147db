"""Many QNN methods: in one program, and through one worker process."""

from __future__ import annotations

import subprocess
import sys
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
import resource, sys
from mmpack.multimethod import build
build(sys.argv[1], sys.argv[2], cache=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak(folder: Path, count: int) -> int:
    """Kilobytes that the worker of a build had at its peak."""
    folder.mkdir()
    project = layers(folder, folder / "cache", count, 2048)
    arguments = [str(project.path), str(project.output), str(project.cache)]
    command = [sys.executable, "-W", "ignore", "-c", BUILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_is_that_of_the_largest_method_and_not_of_all(tmp_path: Path) -> None:
    """What compiles; the build itself has the whole model, and runs the whole program."""
    one, eight = peak(tmp_path / "one", 1), peak(tmp_path / "eight", 8)
    assert eight <= 1.1 * one
