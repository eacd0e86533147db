"""A program of which a backend cannot have everything loaded at once is refused where it is built.

XNNPACK stands in for a backend with limited room; `targets/test_qnn_room.py` is about a real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod import TargetError
from mmpack.multimethod.link import PteFile
from mmpack.multimethod.link.extents import delegate_extents
from mmpack.multimethod.targets.xnnpack import Xnnpack

EACH = 1000
MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x):
        return self.b(torch.erf(self.a(x)))
"""
SPEC = """
methods:
  plain: {module: a, target: plain, inputs: {input: [1, 8]}}
  one: {module: a, target: cpu, inputs: {input: [1, 8]}}
  two: {module: ".", target: cpu, inputs: {x: [1, 8]}}
"""
ADVICE = (
    "have one method do the work of several, or make several programs; `--no-verify` builds it all "
    "the same, for a machine with more room\n"
    "    3 | targets: {cpu: {backend: xnnpack}, plain: {backend: portable}}\n"
    "      |                          ^^^^^^^"
)


@pytest.fixture
def narrow(project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project, and a function that says how much room XNNPACK has."""
    monkeypatch.setattr(Xnnpack, "takes", lambda data: EACH + data)

    def give(room: int) -> None:
        monkeypatch.setattr(Xnnpack, "room", room)

    return project.model(MODEL).spec(SPEC), give


def refused(project: Any) -> str:
    with pytest.raises(TargetError) as caught:
        project.build()
    assert not project.output.exists()
    return str(caught.value).replace(f"{project.folder}/", "")


def delegates(path: Path) -> list[int]:
    """Bytes of data of all delegates of a program."""
    with PteFile.open(path) as file:
        return [extent.size for plan in file.plans for extent in delegate_extents(file, plan)]


def test_more_methods_than_can_be_loaded_are_refused_before_the_model_is_made(narrow: Any) -> None:
    project, give = narrow
    give(2 * EACH - 1)
    project.file("model.py", "def make():\n    raise AssertionError('it was imported')")
    assert refused(project) == (
        "spec.yaml:3:26: targets.cpu.backend: 2 methods are for xnnpack, of whose graphs a process "
        f"of this machine can have at most 1 loaded at once: {ADVICE}"
    )


def test_what_was_compiled_is_held_against_the_room_graph_by_graph(narrow: Any) -> None:
    project, give = narrow
    project.build()
    sizes = delegates(project.output)
    project.output.unlink()
    assert len(sizes) == 3  # `two` is a graph, erf, and a graph
    taken = 3 * EACH + sum(sizes)
    give(taken - 1)
    assert refused(project) == (
        "spec.yaml:3:26: targets.cpu.backend: the 2 methods for xnnpack are 3 graphs, which take "
        f"{taken / 1e6:.0f} MB when they are loaded; all that a process of this machine has loaded "
        f"can take {(taken - 1) / 1e6:.0f} MB: {ADVICE}"
    )
    give(taken)
    project.build()


def test_what_is_not_run_here_may_be_larger(narrow: Any) -> None:
    project, give = narrow
    give(1)
    project.build(verify=False)
    assert len(delegates(project.output)) == 3
