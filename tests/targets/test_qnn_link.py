"""Objects for QNN in the cache, in the linker, and in what is shown of a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import LinkError, inspect, link, load
from mmpack.multimethod.compile.cache import Cache

from ..compile.projects import Project
from .qnn import HEAD, METHODS, needs_qnn

pytestmark = needs_qnn


def objects(npu: Project, *names: str) -> dict[str, Path]:
    """The one-method programs that a build left in its cache."""
    cache = Cache(npu.cache)
    manifest = load(npu.output).manifest
    assert manifest is not None
    found = {name: cache.object(manifest.methods[name].key or "") for name in names}
    return {name: made.path for name, made in found.items() if made is not None}


def test_a_second_build_compiles_nothing(npu: Project, tmp_path: Path) -> None:
    report = npu.build(output=tmp_path / "again.pte", workers=True)
    assert report.compiled == 0
    assert (tmp_path / "again.pte").read_bytes() == npu.output.read_bytes()


BUILD = """
import sys, torch
from mmpack.multimethod import build, load
spec, output, cache = sys.argv[1:]
report = build(spec, output, cache=cache)
print(*[method.signature.method for method in report.methods if not method.cached])
program = load(output)
program.run_method("table", torch.zeros(1, 2, dtype=torch.int64))
program.reset()
program.run_method("mlp", torch.zeros(1, 8, 64))
"""


def test_one_method_changed_is_one_compiled_and_nothing_of_qnn_is_printed(
    npu: Project, tmp_path: Path
) -> None:
    other = Project(tmp_path, npu.cache)
    (tmp_path / "model.py").write_text((npu.folder / "model.py").read_text())
    other.spec(METHODS.replace("{input: {shape: [1, 8]", "{input: {shape: [1, 2]"), HEAD)
    script = [sys.executable, "-W", "ignore", "-c", BUILD]
    arguments = [str(other.path), str(other.output), str(other.cache)]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "table\n"
    assert "qnn" not in done.stderr.lower() and "stage" not in done.stderr
    logs = [path.read_text() for path in (other.cache / "logs").glob("table-*.log")]
    assert any("[Qnn ExecuTorch]" in log for log in logs)  # there it is


def test_programs_with_qnn_methods_are_linked_like_any(npu: Project, tmp_path: Path) -> None:
    made = objects(npu, "mlp", "split", "older", "cpu")
    assert len(made) == 4
    for name in ("a", "b"):
        parts = ("mlp", "cpu") if name == "a" else ("split", "older")
        link([made[p] for p in parts], tmp_path / f"{name}.pte")
    link([tmp_path / "b.pte", tmp_path / "a.pte"], tmp_path / "c.pte")
    linked, whole = load(tmp_path / "c.pte"), load(npu.output)
    for name, rows in {"mlp": 8, "split": 8, "older": 4, "cpu": 3}.items():
        x = torch.randn(1, rows, 64)
        assert torch.equal(linked.run_method(name, x)[0], whole.run_method(name, x).y)


def test_a_qnn_method_keeps_its_name(npu: Project, tmp_path: Path) -> None:
    """Its graph has that name, inside what QNN compiled."""
    made = objects(npu, "mlp", "cpu")
    with pytest.raises(LinkError) as raised:
        link(list(made.values()), tmp_path / "c.pte", rename={"mlp": "mlp_2"})
    assert "method 'mlp' cannot be renamed: its QnnBackend delegate finds" in str(raised.value)
    link(list(made.values()), tmp_path / "c.pte", rename={"cpu": "cpu_2"})
    assert load(tmp_path / "c.pte").method_names == ("mlp", "cpu_2")


def test_inspect_shows_what_is_on_the_npu(npu: Project) -> None:
    seen = inspect(npu.output)
    delegates = {name: view.delegates for name, view in seen.methods.items()}
    assert delegates["mlp"] == delegates["older"] == {"QnnBackend": 1}
    assert delegates["split"] == {"QnnBackend": 2}
    assert delegates["cpu"] == {"XnnpackBackend": 1}
    assert seen.methods["split"].left == {"aten::erf.out": 1}
    assert seen.methods["mlp"].target == "npu" and seen.methods["older"].target == "older"
    text = str(seen)
    assert "  target npu, lane npu, fp16, 2 × QnnBackend\n  on the CPU: aten::erf.out\n" in text


def test_the_manifest_says_how_it_was_compiled(npu: Project) -> None:
    manifest: Any = load(npu.output).manifest
    assert manifest.methods["mlp"].options == {"soc": "SM8750", "precision": "fp16"}
    assert manifest.methods["older"].options == {"soc": "SM8550", "precision": "fp16"}
    assert manifest.methods["split"].left == {"aten::erf": 1}
