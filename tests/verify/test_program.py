"""The oracle itself: what it holds a program against, and what it refuses."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import load, verify
from mmpack.multimethod.compile.unit import make_units
from mmpack.multimethod.errors import FlowError, ModelError, VerifyError
from mmpack.multimethod.progress import Silent
from mmpack.multimethod.runtime import image
from mmpack.multimethod.verify.checked import Checked, Verified
from mmpack.multimethod.verify.methods import verify_methods

INF, NAN = float("inf"), float("nan")


def test_a_nan_is_never_right() -> None:
    assert not Checked("f", NAN, 1.0, "").right
    assert not Checked("f", INF, 1.0, "").right


def test_everything_that_is_wrong_is_told_at_once() -> None:
    verified = Verified(
        {"a": Checked("a", 0.5, 0.1, "output 'y'"), "b": Checked("b", 0.0, 0.1, "output 'y'")},
        (Checked("flow f", INF, 0.1, "output 'z' at 3 rows"),),
    )
    with pytest.raises(VerifyError) as caught:
        verified.require_right()
    assert str(caught.value) == (
        "a: output 'y' is off by 0.5 from eager PyTorch, allowed 0.1\n"
        "flow f: output 'z' at 3 rows is off by inf from eager PyTorch, allowed 0.1"
    )


MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.arange(3.0))
        self.register_buffer("sum", torch.zeros(3))
    def forward(self, x):
        return x * self.w + {shift}
    def add(self, x):
        self.sum += x
        return self.sum * 1
    def seen(self, x):
        return self.sum + x
"""
SPEC = """
dims: {chunk: 2, n: {min: 1, max: 8}}
methods:
  f: {module: ".", target: plain, inputs: {x: [chunk, 3]}, outputs: y}
  add: {module: ".", call: add, target: plain, inputs: {x: [3]}}
  seen: {module: ".", call: seen, target: plain, inputs: {x: [n, 3]}}
state: {shared: [sum]}
flow:
  go: {cut: {x: chunk}, steps: [f], outputs: [y]}
constants: {get_size: 3}
"""


@pytest.fixture
def built(project: Any) -> Any:
    project.model(MODEL.replace("{shift}", "1")).spec(SPEC).build()
    return project


def test_a_program_is_right_for_the_spec_that_it_was_built_from(built: Any) -> None:
    verified = verify(built.output, built.path)
    assert [*verified.methods, *(flow.name for flow in verified.flows)] == [
        "f",
        "add",
        "seen",
        "flow go",
    ]
    assert all(c.error <= 1e-6 for c in (*verified.methods.values(), *verified.flows))


def test_a_changed_model_is_named_by_method_and_flow(built: Any) -> None:
    built.model(MODEL.replace("{shift}", "2"))
    with pytest.raises(VerifyError) as caught:
        verify(built.output, built.path)
    lines = built.path.read_text().splitlines()
    at = [f"{built.path}:{n}:3" for n, line in enumerate(lines, 1) if re.match("  (f|go):", line)]
    told = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
    assert told == [[at[0], "f"], [at[1], "flow go"]]


def test_state_is_followed_from_method_to_method(built: Any) -> None:
    built.model(MODEL.replace("{shift}", "1").replace("self.sum += x", "self.sum -= x"))
    with pytest.raises(VerifyError) as caught:
        verify(built.output, built.path)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["add", "seen"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("f: {module", "g: {module", "has no method 'g'; known: f"),
        ("[chunk, 3]}, outputs", "[chunk, 4]}, outputs", "f: the program takes\n  f(x: float32["),
        ("n: {min: 1, max: 8}", "n: {min: 1, max: 9}", "seen: the program takes"),
        ("outputs: y}", "outputs: z}", "f: the program's outputs are y, the spec says z"),
        ("go: {cut", "gone: {cut", "has no flow 'gone'"),
        ("outputs: [y]}", "outputs: [y], reference: none}", "flow 'go' of"),
        ("get_size: 3", "get_size: 4", "constant 'get_size' of"),
        ("get_size: 3", "get_sizes: 3", "has no constant 'get_sizes'"),
    ],
)
def test_another_spec_is_told_from_the_programs(built: Any, old: str, new: str, says: str) -> None:
    text = SPEC.replace(old, new)
    text = text.replace("steps: [f]", "steps: [g]") if "g: {module" in new else text
    text = text.replace("outputs: [y]", "outputs: [z]") if new == "outputs: z}" else text
    assert text != SPEC
    built.spec(text)
    with pytest.raises(VerifyError) as caught:
        verify(built.output, built.path)
    assert says in str(caught.value)


def test_a_build_copies_no_program_and_verifying_copies_it_once_to_disk(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    real = image._nameless

    def counted() -> int:
        copies.append(1)
        return real()

    monkeypatch.setattr(image, "_nameless", counted)
    monkeypatch.delattr(os, "memfd_create")  # memory
    built.build()
    assert copies == []
    verify(built.output, built.path)
    assert copies == [1]


def test_who_verifies_a_program_may_write_over_it_meanwhile(built: Any) -> None:
    class Overwriting(Silent):
        def start(self, method: str) -> None:
            built.output.write_bytes(b"")

    verified = verify(built.output, built.path, progress=Overwriting())
    assert [*verified.methods] == ["f", "add", "seen"]
    assert built.output.read_bytes() == b""


def test_a_foreign_program_is_not_what_the_spec_says(built: Any, foreign: Path) -> None:
    with pytest.raises(VerifyError, match="has no method 'f', 'add', 'seen'; known: delegated, "):
        verify(foreign, built.path)


def test_a_foreign_program_with_the_right_methods_lacks_names(project: Any, tmp_path: Path) -> None:
    from executorch.exir import to_edge_transform_and_lower

    project.model(MODEL.replace("{shift}", "1"))
    project.spec("methods: {f: {module: '.', target: plain, inputs: {x: [2, 3]}}}")
    exported = torch.export.export(project.load_model(), (torch.ones(2, 3),))
    made = tmp_path / "stock.pte"
    made.write_bytes(to_edge_transform_and_lower({"f": exported}).to_executorch().buffer)
    with pytest.raises(VerifyError, match="the program takes"):
        verify(made, project.path)


def test_a_reference_that_is_not_there_is_told(project: Any) -> None:
    project.model(MODEL.replace("{shift}", "1"))
    project.spec(SPEC.replace("outputs: [y]}", "outputs: [y], reference: whole}"))
    with pytest.raises(FlowError, match=r"go\.reference: the model has no method 'whole'"):
        project.build()


def test_verifying_leaves_the_model_as_it_was(built: Any) -> None:
    from mmpack.multimethod.compile.model import load_model
    from mmpack.multimethod.compile.unit import make_units
    from mmpack.multimethod.progress import Silent
    from mmpack.multimethod.verify.program import verify_program

    spec_file = built.checked
    model = load_model(spec_file)
    units = make_units(spec_file, model)
    verify_program(load(built.output), spec_file, units, model, {}, Silent())
    assert model.sum.tolist() == [0, 0, 0]


ADD = '  add: {module: ".", call: add, target: plain, inputs: {x: [3]}}\n'
READER_FIRST = SPEC.replace(ADD, "").replace("state:", ADD + "state:")


def test_a_reader_that_stands_before_the_writer_is_held_against_what_it_wrote(built: Any) -> None:
    """Each method has its own `sum` in the program; only a second round shows that."""
    built.spec(READER_FIRST.replace("shared", "private")).build()
    model = built.load_model()
    units = make_units(built.checked, model)
    found = verify_methods(load(built.output), units, model, {}, Silent())
    assert [name for name, checked in found.items() if not checked.right] == ["seen"]


def test_state_that_is_shared_otherwise_than_the_spec_says_is_named(built: Any) -> None:
    built.spec(SPEC.replace("shared", "private"))
    with pytest.raises(VerifyError, match=r"buffer 'sum' is shared in .*, the spec says private"):
        verify(built.output, built.path)


def test_a_program_for_another_target_is_told_from_the_specs(built: Any) -> None:
    built.spec(SPEC.replace('f: {module: ".", target: plain', 'f: {module: ".", target: cpu'))
    with pytest.raises(VerifyError, match=r"f: the program was built for .*portable.*spec says"):
        verify(built.output, built.path)


def test_a_method_that_the_spec_has_not_is_named(built: Any) -> None:
    start = SPEC.index("  seen:")
    built.spec(SPEC[:start] + SPEC[SPEC.index("state:") :].replace("state: {shared: [sum]}\n", ""))
    with pytest.raises(VerifyError, match="has a method 'seen' that the spec has not"):
        verify(built.output, built.path)


def test_a_flow_without_a_reference_is_said_not_to_be_compared(project: Any) -> None:
    none = SPEC.replace(
        "  go: {cut: {x: chunk}, steps: [f], outputs: [y]}",
        "  go: {cut: {x: chunk}, steps: [f], outputs: [y], reference: none}\n"
        "  held: {cut: {x: chunk}, steps: [f], outputs: [y]}",
    )
    report = project.model(MODEL.replace("{shift}", "1")).spec(none).build()
    assert [(flow.name, flow.compared) for flow in report.flows] == [
        ("flow go", False),
        ("flow held", True),
    ]
    manifest = load(project.output).manifest
    assert manifest is not None
    told = manifest.provenance["flows"]
    assert told["go"] == "not compared"
    assert told["held"]["error"] <= told["held"]["tolerance"]
    assert [flow.compared for flow in verify(project.output, project.path).flows] == [False, True]


def test_what_a_model_raises_only_when_it_is_verified_is_told_at_its_line(project: Any) -> None:
    body = "return x * self.w + 1"
    only_then = f"assert torch.compiler.is_compiling() or len(x) < 8, 'too long'\n        {body}"
    model = MODEL.replace("{shift}", "1").replace(body, only_then)
    project.model(model).spec(
        SPEC.replace("f: {module", "f: {tolerance: 0.1, module")
        .replace("inputs: {x: [chunk, 3]}", "inputs: {x: [n, 3]}")
        .partition("flow:")[0]
    )
    with pytest.raises(ModelError) as caught:
        project.build()
    first, at = str(caught.value).splitlines()[:2]
    assert re.match(
        rf"{project.path}:\d+:\d+: methods\.f\.inputs: running it on x float32\[n=8, 3\] failed: "
        "AssertionError: too long$",
        first,
    )
    assert at.startswith(f"  at {project.folder}/model.py:")


def test_a_flows_tolerance_is_that_of_its_own_steps(project: Any) -> None:
    loose = SPEC.replace("inputs: {x: [n, 3]}}", "inputs: {x: [n, 3]}, tolerance: 100}")
    project.model(MODEL.replace("{shift}", "1")).spec(loose).build()
    (flow,) = verify(project.output, project.path).flows
    assert flow.tolerance < 1e-3


def test_a_flow_of_methods_with_state_is_refused(project: Any) -> None:
    text = SPEC.replace("steps: [f]", "steps: [seen]").replace("outputs: [y]}", "outputs: [out]}")
    project.model(MODEL.replace("{shift}", "1")).spec(text.replace("x: [n, 3]", "x: [chunk, 3]"))
    with pytest.raises(FlowError, match="flow 'go': method 'seen' has state, the buffer 'sum'"):
        project.build()


COARSE = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.register_buffer("kept", torch.zeros(2, 64))
    def write(self, x):
        self.kept.copy_(self.linear(x))
        return x * 2
    def read(self, x):
        return self.kept + 0 * x
"""
COARSE_SPEC = """
methods:
  write: {module: ".", call: write, target: cpu, precision: 8da8w, inputs: {x: [2, 64]}}
  read: {module: ".", call: read, target: plain, inputs: {x: [2, 64]}, outputs: y}
state: {shared: [kept]}
"""


def test_who_reads_what_a_coarser_method_wrote_is_held_to_no_more(project: Any) -> None:
    report = project.model(COARSE).spec(COARSE_SPEC).build()
    write, read = report.methods
    assert write.quantized and not read.quantized
    assert read.error > 1e-4  # what was written shows; alone it would be exact
    _, checked = verify(project.output, project.path).methods.values()
    assert checked.least_sqnr is not None and checked.sqnr >= checked.least_sqnr


def test_what_the_spec_says_goes_before_what_a_coarser_method_wrote(project: Any) -> None:
    own = COARSE_SPEC.replace(
        "inputs: {x: [2, 64]}, outputs", "tolerance: 1.0e-4, inputs: {x: [2, 64]}, outputs"
    )
    assert own != COARSE_SPEC
    with pytest.raises(VerifyError, match="read: output 'y' is off by"):
        project.model(COARSE).spec(own).build()
