"""What the QNN target says before anything is lowered: options, shapes, and where its libraries
are. Needs neither the extra nor, for the most part, torch."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod import SpecError, TargetError
from mmpack.multimethod.check import check
from mmpack.multimethod.driver.build import build
from mmpack.multimethod.spec.records import MethodSpec
from mmpack.multimethod.targets import BACKENDS, qnn_sdk
from mmpack.multimethod.targets.qnn import NO_FP16, Options, Qnn, soc_names

from ..compile.projects import Project
from .qnn import HEAD, METHODS, MODEL, needs_qnn


@pytest.fixture
def npu_project(project: Project) -> Project:
    return project.model(MODEL).spec(METHODS, HEAD)


def mistakes(project: Project, methods: str = METHODS, head: str = HEAD) -> str:
    """What `check` says, without the folder."""
    with pytest.raises(SpecError) as raised:
        check(project.spec(methods, head).path)
    return str(raised.value).replace(f"{project.folder}/", "")


def test_every_chip_of_executorch_is_known_by_its_name() -> None:
    from executorch.backends.qualcomm.serialization.qc_schema import _soc_info_table

    assert set(soc_names()) == {chip.name for chip in _soc_info_table}
    assert set(NO_FP16) < set(soc_names())
    for soc in soc_names():
        assert Qnn.options({"soc": soc}).precision == "fp16"


def test_an_unknown_chip_is_refused_at_its_line_with_the_nearest(npu_project: Project) -> None:
    assert mistakes(npu_project, head=HEAD.replace("soc: SM8750", "soc: SM875")) == (
        "spec.yaml:5:28: targets.npu.soc: executorch knows no SoC 'SM875'; "
        "did you mean 'SM8750' or 'SM8475' or 'SM8850'?\n"
        "    5 |   npu: {backend: qnn, soc: SM875, precision: fp16}\n"
        "      |                            ^^^^^"
    )


def test_a_chip_must_be_named(npu_project: Project) -> None:
    assert "targets.npu: the key 'soc' is missing" in mistakes(
        npu_project, head=HEAD.replace(", soc: SM8750", "")
    )


def test_a_chip_without_float16_is_refused(npu_project: Project) -> None:
    said = mistakes(npu_project, head=HEAD.replace("SM8550", "SXR1230P"))
    assert "methods.older.target: SXR1230P has no float16, and the target's precision is fp16" in (
        said
    )


@pytest.mark.parametrize(
    ("given", "heads"),
    [
        (False, None),
        (True, "pass"),
        ({"method": "pass"}, "pass"),
        ({"method": "rewrite"}, "rewrite"),
    ],
    ids=str,
)
def test_how_attention_is_converted(given: Any, heads: str | None) -> None:
    assert Qnn.options({"soc": "SM8750", "mha2sha": given}).heads == heads


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{method: rewrit}", ".method: expected one of pass, rewrite; got the text 'rewrit'; did"),
        ("rewrite", ": expected true, false or a mapping of method; got the text 'rewrite'"),
        ("yes", ": expected true, false or a mapping of method; got the text 'yes' (write true)"),
        ("{}", ": the key 'method' is missing"),
        ("{method: pass, by: me}", ".by: this key means nothing here; known: method"),
        ("1", ": expected true, false or a mapping of method; got the whole number 1"),
    ],
)
def test_a_wrong_conversion_is_refused_at_its_line(
    npu_project: Project, given: str, said: str
) -> None:
    head = HEAD.replace("precision: fp16}", f"precision: fp16, mha2sha: {given}}}", 1)
    found = mistakes(npu_project, head=head)
    assert found.startswith("spec.yaml:5:")
    assert f": targets.npu.mha2sha{said}" in found


def test_the_pass_is_refused_where_linear_layers_become_convolutions() -> None:
    method = MethodSpec(module="", target="npu")
    both = Qnn.options({"soc": "SM8750", "precision": "16a4w_block", "mha2sha": True})
    assert "{method: rewrite} does" in str(Qnn.refuses(both, method, {}, {}))
    rewrite = {"precision": "16a4w_block", "mha2sha": {"method": "rewrite"}}
    for given in ({"mha2sha": True}, {"precision": "16a4w_block"}, rewrite):
        assert Qnn.refuses(Qnn.options({"soc": "SM8750", **given}), method, {}, {}) is None


def test_a_dynamic_dim_is_refused_where_it_stands(npu_project: Project) -> None:
    said = mistakes(npu_project, METHODS.replace("x: [1, 8, 64]}, outputs: y}", "x: [1, n, 64]}}"))
    first, _ = said.split("\n\n")
    assert first == (
        "spec.yaml:10:51: methods.mlp.inputs.x[1]: n=1..16 is dynamic, and qnn takes static "
        "shapes only: give the dim one size, or the method a target with dynamic shapes, such as "
        "xnnpack\n"
        "   10 |   mlp: {module: mlp, target: npu, inputs: {x: [1, n, 64]}}\n"
        "      |                                                   ^"
    )


def test_a_dynamic_axis_of_a_captured_input_is_refused_where_it_stands(
    npu_project: Project,
) -> None:
    methods = (
        "sample: {x: [1, 8, 64]}\n"
        "methods:\n"
        "  mlp: {module: mlp, target: npu, inputs: captured, axes: {x: {1: n}}, outputs: y}\n"
    )
    assert "methods.mlp.axes.x[1]: n=1..16 is dynamic" in mistakes(npu_project, methods)


def test_a_dim_of_one_size_is_static(npu_project: Project) -> None:
    methods = METHODS.replace("x: [1, 8, 64]", "x: [1, k, 64]")
    head = HEAD.replace("n: {min: 1, max: 16}", "n: {min: 1, max: 16}, k: {min: 8, max: 8}")
    check(npu_project.spec(methods, head).path)


def test_checking_takes_no_torch(npu_project: Project) -> None:
    code = (
        "import sys\nfrom mmpack.multimethod import check\n"
        f"check({str(npu_project.path)!r})\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_executorch_the_chips_are_left_to_the_build(
    npu_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch.backends.qualcomm.serialization.qc_schema", None)
    soc_names.cache_clear()
    try:
        check(npu_project.spec(METHODS, HEAD.replace("SM8750", "SM1")).path)
    finally:
        monkeypatch.undo()
        soc_names.cache_clear()


# Where the libraries are.


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs packages that are empty but for the files that are asked for."""
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    versions: dict[str, str | None] = {"onnxruntime-qnn": "2.5.0", "py-cpuinfo": "9", "pydot": "4"}
    monkeypatch.setattr(qnn_sdk, "installed", lambda package: versions.get(package))
    home = tmp_path / "site"
    (home / "onnxruntime_qnn").mkdir(parents=True)
    for name in qnn_sdk.NEEDED:
        (home / "onnxruntime_qnn" / name).write_bytes(b"\0 v2.49.40.260810104044 \0")

    class Distribution:
        @staticmethod
        def locate_file(name: str) -> Path:
            return home / name

    monkeypatch.setattr(qnn_sdk.metadata, "distribution", lambda package: Distribution)
    return versions, home


def fake_sdk(root: Path, *libraries: str) -> Path:
    folder = root / "lib" / "x86_64-linux-clang"
    folder.mkdir(parents=True)
    for name in libraries:
        (folder / name).write_bytes(b"no version")
    return root


def test_the_wheel_is_found_and_its_version_read(wheel: Any) -> None:
    _, home = wheel
    found = Qnn.available()
    assert (found.builds, found.runs) == (True, True)
    assert found.remedy == "pip install --force-reinstall --no-deps onnxruntime-qnn==2.5.0"
    assert found.detail == "QNN 2.49.40, from onnxruntime-qnn 2.5.0"
    environment = Qnn.environment(Options("SM8750"))
    assert environment["QNN_SDK_ROOT"] == ""  # set, so that executorch downloads none
    folders = environment["LD_LIBRARY_PATH"].split(":")
    assert folders[:2] == [str(home / "onnxruntime_qnn"), str(home / "onnxruntime_qnn.libs")]


def test_a_library_path_of_the_user_s_is_kept(wheel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/a:/opt/b")
    environment = Qnn.environment(Options("SM8750"))
    assert environment["LD_LIBRARY_PATH"].split(":")[2:] == ["/opt/a", "/opt/b"]


def test_an_sdk_that_is_named_goes_before_the_wheel(
    wheel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_sdk(tmp_path / "sdk", *qnn_sdk.NEEDED)
    monkeypatch.setenv("QNN_SDK_ROOT", str(root))
    assert Qnn.available().detail == f"QNN of unknown version, from QNN_SDK_ROOT={root}"
    environment = Qnn.environment(Options("SM8750"))
    assert environment["QNN_SDK_ROOT"] == str(root)
    assert environment["LD_LIBRARY_PATH"].startswith(f"{root}/lib/x86_64-linux-clang")


def test_an_sdk_that_is_named_and_of_no_use_is_not_passed_over(
    wheel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_sdk(tmp_path / "sdk", "libQnnHtp.so")
    monkeypatch.setenv("QNN_SDK_ROOT", str(root))
    found = Qnn.available()
    assert not found.builds and not found.runs
    assert found.detail == (
        f"QNN_SDK_ROOT is {root}, and there is no lib/x86_64-linux-clang/libQnnSystem.so in it"
    )
    assert found.remedy == (
        "set it to the folder of a QNN SDK, or unset it and pip install 'mmpack[qnn]'"
    )


@pytest.mark.parametrize(
    ("package", "version", "says"),
    [
        ("onnxruntime-qnn", None, "no QNN libraries: neither onnxruntime-qnn 2.5.0 nor"),
        ("onnxruntime-qnn", "2.6.0", "onnxruntime-qnn is 2.6.0, and executorch 1.5 works with"),
        ("pydot", None, "executorch's QNN lowering needs pydot"),
    ],
)
def test_what_is_missing_is_named_with_the_extra(
    wheel: Any, package: str, version: str | None, says: str
) -> None:
    wheel[0][package] = version
    found = Qnn.available()
    assert not found.builds
    assert found.detail.startswith(says)
    assert found.remedy == "pip install 'mmpack[qnn]'"
    with pytest.raises(TargetError, match=r"qnn: .*; to change that: pip install 'mmpack\[qnn\]'"):
        Qnn.environment(Options("SM8750"))


def test_a_wheel_that_has_lost_a_library_is_to_be_installed_again(wheel: Any) -> None:
    (wheel[1] / "onnxruntime_qnn" / "libQnnHtp.so").unlink()
    found = Qnn.available()
    assert found.detail == "onnxruntime-qnn 2.5.0 has lost its libQnnHtp.so"
    assert found.remedy == "pip install --force-reinstall --no-deps onnxruntime-qnn==2.5.0"


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_another_machine_is_told_so(
    wheel: Any, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = Qnn.available()
    assert not found.builds
    assert found.detail == (
        f"the compiler and the simulator are for Linux on x86-64, and this is {system} on {machine}"
    )


def test_a_build_without_the_libraries_says_so_before_it_compiles_anything(
    wheel: Any, npu_project: Project
) -> None:
    wheel[0]["onnxruntime-qnn"] = None
    (npu_project.folder / "model.py").write_text("def make():\n    raise SystemExit('imported')\n")
    with pytest.raises(TargetError) as raised:
        build(npu_project.path, npu_project.output, cache=npu_project.cache)
    assert str(raised.value).replace(f"{npu_project.folder}/", "") == (
        "spec.yaml:5:18: targets.npu.backend: cannot build here: no QNN libraries: neither "
        "onnxruntime-qnn 2.5.0 nor QNN_SDK_ROOT; to change that: pip install 'mmpack[qnn]'\n"
        "    5 |   npu: {backend: qnn, soc: SM8750, precision: fp16}\n"
        "      |                  ^^^"
    )


def test_where_executorch_would_download_an_sdk_nothing_is_lowered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    program: Any = None
    with pytest.raises(TargetError, match="a process started with its `environment`"):
        Qnn.edge(program, "f", Options("SM8750"))


NO_NETWORK = """
import os, socket, sys
def refuse(*_): raise AssertionError("something of ours wants the network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
before = dict(os.environ)
from mmpack.multimethod import build, check, inspect, load, verify
from mmpack.multimethod.spec.records import MethodSpec
from mmpack.multimethod.targets import BACKENDS
assert BACKENDS["qnn"].available().builds
spec, program = sys.argv[1:]
check(spec, model=True)
inspect(program)
verify(program, spec)
import torch
load(program).run_method("mlp", torch.ones(1, 8, 64))
assert not [m for m in sys.modules if "download" in m and "qualcomm" in m]
assert {k: v for k, v in os.environ.items() if "QNN" in k or k == "LD_LIBRARY_PATH"} == {
    k: v for k, v in before.items() if "QNN" in k or k == "LD_LIBRARY_PATH"
}
"""


@needs_qnn
def test_nothing_is_downloaded_and_no_variable_is_needed(npu: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_NETWORK, str(npu.path), str(npu.output)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert BACKENDS["qnn"].available().detail.startswith("QNN 2.")
