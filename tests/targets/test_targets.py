"""What every backend must tell mmpack of itself."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.records import InputSpec, MethodSpec
from mmpack.multimethod.targets import BACKENDS, Backend


def test_they_are_found_by_looking_into_the_folder() -> None:
    assert {"portable", "xnnpack"} <= set(BACKENDS)
    assert list(BACKENDS) == sorted(BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
class TestEveryBackend:
    def test_has_a_name_and_a_line_about_itself(self, name: str) -> None:
        backend = BACKENDS[name]
        assert issubclass(backend, Backend) and backend.name == name
        assert backend.summary and "\n" not in backend.summary

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
