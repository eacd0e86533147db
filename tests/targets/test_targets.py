"""What every backend must tell mmpack of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from mmpack.multimethod import load, targets
from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec import load_spec
from mmpack.multimethod.spec.records import InputSpec, MethodSpec
from mmpack.multimethod.targets import BACKENDS, Backend


def test_they_are_found_by_looking_into_the_folder() -> None:
    assert {"portable", "xnnpack"} <= set(BACKENDS)
    assert list(BACKENDS) == sorted(BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
class TestEveryBackend:
    def test_has_its_name(self, name: str) -> None:
        backend = BACKENDS[name]
        assert issubclass(backend, Backend) and backend.name == name

    def test_has_options_that_are_an_attrs_record(self, name: str) -> None:
        assert attrs.has(BACKENDS[name].Options)
        assert BACKENDS[name].Options.__doc__

    def test_says_what_would_change_a_no(self, name: str) -> None:
        found = BACKENDS[name].available()
        assert found.detail
        assert (found.builds and found.runs) or found.remedy


@pytest.mark.parametrize("name", ["portable", "xnnpack"])
def test_the_cpu_backends_build_and_run_wherever_executorch_is(name: str) -> None:
    backend = BACKENDS[name]
    found = backend.available()
    assert found.builds and found.runs
    options = backend.options({})
    assert 0 < backend.tolerance(options) <= 1e-3
    assert bool(backend.partitioners(options)) == bool(backend.delegate)
    method = MethodSpec(module="", target="t")
    inputs, dims = {"x": InputSpec(("n", 4))}, {"n": Dim("n", 1, 8)}
    assert backend.refuses(options, method, inputs, dims) is None


def test_each_has_a_lane() -> None:
    assert {name: backend.lane for name, backend in BACKENDS.items()} == {
        "portable": "cpu",
        "qnn": "npu",
        "xnnpack": "cpu",
    }


def test_xnnpack_says_so_where_the_runtime_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.runtime import Runtime

    registry = Runtime.get().backend_registry
    monkeypatch.setattr(type(registry), "is_available", lambda self, name: False)
    found = BACKENDS["xnnpack"].available()
    assert found.builds and not found.runs
    assert found.remedy is not None and "executorch>=1.5.1,<1.6" in found.remedy


def test_reading_them_imports_neither_torch_nor_executorch() -> None:
    code = (
        "import sys, mmpack.multimethod.targets\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'executorch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


ANOTHER = """
from attrs import frozen

from mmpack.multimethod.targets.base import Refusal
from mmpack.multimethod.targets.portable import Portable

@frozen
class Options:
    allowed: float = 0.5

class Another(Portable):
    name = "another"
    Options = Options

    @classmethod
    def tolerance(cls, options):
        return options.allowed

    @classmethod
    def refuses(cls, options, method, inputs, dims):
        if any(len(value.shape) != 2 for value in inputs.values()):
            return Refusal("another takes matrices only", ("inputs",))
"""


class TestANewBackend:
    """One new file in the folder, and nothing else, makes a backend."""

    @pytest.fixture
    def another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Backend]:
        folder = tmp_path / "targets"
        folder.mkdir()
        (folder / "another.py").write_text(ANOTHER)
        monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(folder)])
        found = targets._found()
        assert set(found) - set(BACKENDS) == {"another"}
        assert {name: found[name] for name in BACKENDS} == BACKENDS
        monkeypatch.setitem(BACKENDS, "another", found["another"])
        return found["another"]

    HEAD = (
        "mmpack: 1\nmodel: {factory: model.py:make}\n"
        "targets: {mine: {backend: another, allowed: 0.25}}\n"
    )
    SPEC = "methods: {f: {module: '.', target: mine, inputs: {x: [2, 3]}, outputs: y}}\n"
    MODEL = """
    class Model(nn.Module):
        def forward(self, x):
            return x * 2 + 1
    """

    @pytest.mark.usefixtures("another")
    def test_builds_verifies_and_runs(self, project: Any) -> None:
        project.model(self.MODEL).spec(self.SPEC, self.HEAD).build()
        program = load(project.output)
        record = program.manifest.methods["f"]
        assert (record.target, record.backend) == ("mine", "another")
        assert record.options == {"allowed": 0.25}
        assert record.tolerance == 0.25
        x = torch.randn(2, 3)
        assert torch.equal(program.run_method("f", x).y, x * 2 + 1)

    @pytest.mark.usefixtures("another")
    def test_is_asked_what_it_refuses_and_which_options_it_has(self, project: Any) -> None:
        project.model(self.MODEL).spec(self.SPEC.replace("[2, 3]", "[6]"), self.HEAD)
        with pytest.raises(SpecError, match="another takes matrices only"):
            project.build()
        project.spec(self.SPEC, self.HEAD.replace("allowed", "aloud"))
        with pytest.raises(SpecError, match="did you mean 'allowed'"):
            project.build()

    def test_is_unknown_without_its_file(self, project: Any) -> None:
        project.model(self.MODEL).spec(self.SPEC, self.HEAD)
        with pytest.raises(SpecError, match="'another'"):
            project.build()


@pytest.mark.parametrize("group", [0, 16, 40])
@pytest.mark.parametrize("target", ["backend: xnnpack", "backend: qnn, soc: SM8750"])
def test_weights_in_wrong_groups_are_refused_where_the_group_stands(
    tmp_path: Path, target: str, group: int
) -> None:
    path = tmp_path / "spec.yaml"
    line = f"targets: {{t: {{{target}, group: {group}}}}}"
    method = "methods: {f: {module: '.', target: t, inputs: {x: [1]}}}"
    path.write_text(f"mmpack: 1\nmodel: {{factory: model.py:make}}\n{line}\n{method}\n")
    (tmp_path / "model.py").write_text("def make(): ...\n")
    with pytest.raises(SpecError) as raised:
        load_spec(path)
    at = line.index(f"{group}}}")
    assert str(raised.value) == (
        f"{path}:3:{at + 1}: targets.t.group: expected a multiple of 32, got {group}\n"
        f"    3 | {line}\n"
        f"      | {' ' * at}{'^' * len(str(group))}"
    )
