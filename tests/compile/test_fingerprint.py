"""Fingerprints: the same for the same unit in every process, another one after every change that
could change what is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod.compile import fingerprint, sources
from mmpack.multimethod.compile.fingerprint import Fingerprints
from mmpack.multimethod.compile.model import state_names
from mmpack.multimethod.compile.unit import make_units

MODEL = """
import enum
import functools
from dataclasses import dataclass

import numpy
from helper import SCALE, helped
import helper

EPS = 1e-5
TABLE = torch.arange(3.0)

class Mode(enum.Enum):
    ADD = 1
    SUB = 2

@dataclass
class Config:
    width: int = 3
    inner: object = None

class Slotted:
    __slots__ = ("value",)
    def __init__(self, value): self.value = value

class SubSlotted(Slotted):
    __slots__ = ("more",)
    def __init__(self, value):
        super().__init__(value)
        self.more = 1

class Other(nn.Module):
    def forward(self, x): return x

class Model(nn.Module):
    factor = 2.0
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.other = Other()
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.plain = torch.arange(3.0)
        self._private = 1
        self.mode = Mode.ADD
        self.config = Config(inner={"a": [1, 2, (3, 4)]})
        self.slotted = SubSlotted(1)
        self.array = numpy.arange(3.0)
        self.span = range(3)
        self.number = 1 + 2j
        self.names = {"b", "a", "c"}
        self.act = lambda x: x * 2
        self.part = functools.partial(torch.add, alpha=2)
        self.loose = [nn.Linear(2, 2)]
        self.bound = self.helped
    def helped(self, x): return helped(x) * SCALE
    def forward(self, x): return self.linear(x) + self.helped(x)

class Wrapper(nn.Module):
    def __init__(self, module, power=2):
        super().__init__()
        self.module, self.power = module, power
    def forward(self, x): return self.module(x) ** self.power
"""
MAKE = """
def make(scale=1.0):
    torch.manual_seed(0)
    class Local(Model):
        def forward(self, x): return super().forward(x) * scale
    return Local()
"""
HELPER = """
from deeper import DEPTH
SCALE = 2.0
def helped(x):
    from later import late
    return x + DEPTH + late
"""
SPEC = """
mmpack: 1
model: {factory: model.py:make, args: {scale: 1.0}}
dims: {n: {min: 1, max: 8}, fixed: 4}
targets: {cpu: {backend: xnnpack}, plain: {backend: portable}}
methods:
  f: {module: ".", target: plain, inputs: {x: [n, 3]}, outputs: out, tolerance: 0.1}
  g: {module: other, target: cpu, inputs: {x: [fixed, 3]}}
  h: {module: ".", wrapper: "model.py:Wrapper", args: {power: 2}, target: cpu, inputs: {x: [2, 3]}}
"""


@pytest.fixture
def made(project: Any) -> Any:
    project.model(MODEL, MAKE)
    project.file("helper.py", HELPER)
    project.file("deeper.py", "DEPTH = 1\n")
    project.file("later.py", "late = 1\n")
    project.file("unrelated.py", "x = 1\n")
    project.file("spec.yaml", SPEC)
    return project


def prints(project: Any, change: Callable[[Any], None] = lambda model: None) -> dict[str, str]:
    spec_file, model = project.checked, project.load_model()
    change(model)
    units = make_units(spec_file, model)
    fingerprints = Fingerprints(state_names(model))
    return {name: fingerprints.of(unit) for name, unit in units.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_the_same_project_has_the_same_fingerprints_in_every_process(made: Any) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from mmpack.multimethod.compile.fingerprint import Fingerprints\n"
        "from mmpack.multimethod.compile.model import load_model, state_names\n"
        "from mmpack.multimethod.compile.unit import make_units\n"
        "from mmpack.multimethod.spec import load_spec\n"
        "spec = load_spec(sys.argv[1]); model = load_model(spec)\n"
        "f = Fingerprints(state_names(model))\n"
        "print([f.of(u) for u in make_units(spec, model).values()])\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(made.path)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    here = prints(made)
    assert run.stdout.strip() == str(list(here.values()))
    assert prints(made) == here


def test_a_lane_is_no_part_of_what_is_compiled(made: Any) -> None:
    before = prints(made)
    text = made.path.read_text()
    made.file("spec.yaml", text.replace("{backend: xnnpack}", "{backend: xnnpack, lane: npu}"))
    assert "lane: npu" in made.path.read_text() and prints(made) == before


def test_a_moved_project_has_the_same_fingerprints(made: Any, tmp_path: Any) -> None:
    from .projects import Project

    before = prints(made)
    moved = made.folder.rename(tmp_path / "moved")
    assert prints(Project(moved, made.cache)) == before


def _weight(model: Any) -> None:
    with torch.no_grad():
        model.linear.weight[0, 0] += 1e-6


@pytest.mark.parametrize(
    "change",
    [
        _weight,
        lambda m: m.table.add_(1),
        lambda m: m.plain.add_(1),
        lambda m: setattr(m, "_private", 2),
        lambda m: setattr(m, "mode", type(m.mode).SUB),
        lambda m: setattr(m.config, "width", 4),
        lambda m: m.config.inner["a"].append(5),
        lambda m: setattr(m.slotted, "value", 2),
        lambda m: setattr(m, "array", m.array + 1),
        lambda m: setattr(m, "span", range(4)),
        lambda m: setattr(m, "number", 1 + 3j),
        lambda m: m.names.add("d"),
        lambda m: setattr(m, "act", (lambda k: lambda x: x * k)(3)),
        lambda m: setattr(m, "part", type(m.part)(torch.add, alpha=3)),
        lambda m: m.loose[0].weight.data.add_(1),
        lambda m: m.register_forward_hook(lambda module, args, out: out * 2),
        lambda m: m.register_forward_pre_hook(lambda module, args: None),
    ],
)
def test_any_change_of_a_module_changes_its_fingerprint(
    made: Any, change: Callable[[Any], None]
) -> None:
    assert changed(prints(made), prints(made, change)) == {"f", "h"}


def test_what_a_closure_holds_counts(made: Any) -> None:
    def closing_over(number: int) -> Callable[[Any], None]:
        return lambda m: setattr(m, "act", lambda x: x * number)

    assert changed(prints(made, closing_over(2)), prints(made, closing_over(3))) == {"f", "h"}


@pytest.mark.parametrize(
    ("old", "new", "methods"),
    [
        ("args: {scale: 1.0}", "args: {scale: 2.0}", {"f", "h"}),  # only in a closure
        ("max: 8", "max: 9", {"f"}),
        ("fixed: 4", "fixed: 5", {"g"}),
        ("f: {module: '.', target: plain", "f: {module: '.', target: cpu", {"f"}),
        ("outputs: out", "outputs: result", {"f"}),
        ("power: 2", "power: 3", {"h"}),
        ("tolerance: 0.1", "tolerance: 0.2", set()),
    ],
)
def test_a_change_of_the_spec_changes_the_methods_it_is_about(
    made: Any, old: str, new: str, methods: set[str]
) -> None:
    text = SPEC.replace('"."', "'.'")
    made.file("spec.yaml", text)
    before = prints(made)
    assert old in text
    made.file("spec.yaml", text.replace(old, new))
    assert changed(before, prints(made)) == methods


@pytest.mark.parametrize(
    ("file", "old", "new", "methods"),
    [
        ("model.py", "EPS = 1e-5", "EPS = 1e-6", {"f", "g", "h"}),
        ("model.py", "factor = 2.0", "factor = 3.0", {"f", "g", "h"}),
        ("helper.py", "SCALE = 2.0", "SCALE = 3.0", {"f", "g", "h"}),  # a number has no home
        ("deeper.py", "1", "2", {"f", "g", "h"}),  # imported by what is imported
        ("later.py", "1", "2", {"f", "g", "h"}),  # imported only when it runs
        ("unrelated.py", "1", "2", set()),
    ],
)
def test_a_change_of_code_changes_all_that_can_reach_it(
    made: Any, file: str, old: str, new: str, methods: set[str]
) -> None:
    before = prints(made)
    path = made.folder / file
    path.write_text(path.read_text().replace(old, new, 1))
    assert changed(before, prints(made)) == methods


def test_what_a_file_reads_when_it_is_imported_counts(made: Any) -> None:
    made.file("number.txt", "1.0")
    path = made.folder / "later.py"
    path.write_text("from pathlib import Path\nlate = 1\n")
    model = made.folder / "model.py"
    reads = "DATA = float(open(__file__.replace('model.py', 'number.txt')).read())\n"
    model.write_text(reads + model.read_text())
    before = prints(made)
    made.file("number.txt", "2.0")
    for name in [name for name in sys.modules if name.startswith("_mmpack_model_")]:
        del sys.modules[name]  # as in a new process
    assert changed(before, prints(made)) == {"f", "g", "h"}


def test_helpers_of_mmpacks_own_wrappers_count() -> None:
    from mmpack.multimethod.compile.describe import Describer
    from mmpack.multimethod.compile.sources import reachable
    from mmpack.wrappers import find

    found = reachable([find("qkv_proj").__module__], Describer())
    assert {content[0] for content in found} >= {
        "mmpack.wrappers.qkv_proj",
        "mmpack.wrappers.rotary",
    }


def test_modules_that_refer_to_each_other_are_described(made: Any) -> None:
    def tangle(model: Any) -> None:
        model.config.inner = model.config
        model.loose.append(model)

    assert prints(made, tangle) == prints(made, tangle)


NOT_IN_OBJECTS = {
    # What they make is hashed itself: modules, tensors, inputs, dims, options, the spec's words.
    "compile/capture.py",
    "compile/listen.py",
    "compile/model.py",
    "compile/parameters.py",
    "huggingface/*.py",
    "spec/*.py",
    # They find, hash, store and carry; what they carry is made elsewhere.
    "compile/cache.py",
    "compile/carried.py",
    "compile/cluster.py",
    "compile/cluster_worker.py",
    "compile/costs.py",
    "compile/describe.py",
    "compile/earlier.py",
    "compile/fingerprint.py",
    "compile/imports.py",
    "compile/ingredients.py",
    "compile/means.py",
    "compile/overview.py",
    "compile/pool.py",
    "compile/process.py",
    "compile/sources.py",
    "compile/spare.py",
    "compile/warm.py",
    "compile/worker.py",
    "plain.py",
    "scratch.py",
    "stock_runtime.py",
    # They only refuse, or tell.
    "collect.py",
    "compile/users_code.py",
    "compile/watch.py",
    "errors.py",
    "memory.py",
    "progress.py",
    "versions.py",
}
"""Files that exporting and lowering import, and that decide nothing of an object."""


def test_every_file_that_decides_what_objects_look_like_is_hashed() -> None:
    script = (
        "import sys\n"
        "import mmpack.multimethod.compile.objects, mmpack.multimethod.compile.worker\n"
        "import mmpack.multimethod.compile.lower, mmpack.multimethod.targets\n"
        "import mmpack.multimethod.compile.warm\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('mmpack.')))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    home = Path(fingerprint.__file__).parents[1]
    imported = {Path(file).relative_to(home) for file in run.stdout.splitlines()[-1].split()}
    code = {file for file in imported if file.name != "__init__.py"}
    assert Path("compile/export.py") in code
    known = [*fingerprint.OWN_CODE, *NOT_IN_OBJECTS]
    assert {
        str(file) for file in code if not any(file.match(pattern) for pattern in known)
    } == set()


def test_every_file_that_is_named_is_there() -> None:
    home = Path(fingerprint.__file__).parents[1]
    for pattern in (*fingerprint.OWN_CODE, *NOT_IN_OBJECTS):
        assert list(home.glob(pattern)), pattern


@pytest.mark.parametrize("package", sources.PACKAGES)
def test_packages_that_are_not_looked_into_are_known_by_their_versions(
    made: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prints(made)
    here = fingerprint.installed
    monkeypatch.setattr(
        fingerprint, "installed", lambda name: "0.0.1" if name == package else here(name)
    )
    fingerprint._versions.cache_clear()
    after = prints(made)
    fingerprint._versions.cache_clear()
    assert changed(before, after) == set(before)
