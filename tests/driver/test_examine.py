"""What `check --model` and the beginning of every build find wrong, without compiling anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmpack.multimethod import check, memory
from mmpack.multimethod.errors import FlowError, MmpackError, ModelError, SpecError

MODEL = """
class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("rows", torch.zeros(2, 4))
        self.register_buffer("first", self.rows[:1])
    def forward(self, x):
        return self.linear(x)
    def put(self, x):
        self.rows.add_(x)
        return x
    def get(self, x):
        return self.rows[1] + x
    def replace(self, x):
        self.rows = self.rows + x
        return x
    def grow(self, x):
        x += 1
        return x
    def two(self, x):
        return x, x

class Wrapper(nn.Module):
    def __init__(self, part, times=1):
        super().__init__()
        if times > 2:
            raise ValueError("too often")
        self.part = part
    def forward(self, x):
        return helper(self.part(x))

def helper(x):
    raise RuntimeError("no help")

class Model(nn.Module):
    def __init__(self, shares=False):
        super().__init__()
        self.parts = nn.ModuleList(Part() for _ in range(2))
        if not shares:
            for part in self.parts:
                part.first = part.first.clone()
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        return self.head(self.parts[0](x))
    def pair(self, x):
        return x, x
    def lifted(self, x):
        return self.forward(x)[None]
    def double(self, x):
        return self.forward(x).double()
"""
HEAD = """\
mmpack: 1
model: {factory: model.py:Model}
dims: {n: {min: 1, max: 8}, chunk: 4}
targets: {plain: {backend: portable}}
"""
PART = "module: parts.0, target: plain, inputs: {x: [2, 4]}"
WHOLE = "  whole: {module: '.', target: plain, inputs: {x: [chunk, 4]}, outputs: y}\n"


def found(project: Any, text: str, head: str = HEAD) -> tuple[str, MmpackError]:
    """The message of `check --model`, which must be that of `build`, too."""
    project.model(MODEL, "").file("spec.yaml", head + text)
    cache = project.folder / "cache"
    messages = []
    for attempt in (lambda: check(project.path, model=True), lambda: project.build(cache=cache)):
        with pytest.raises(MmpackError) as caught:
            attempt()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not list(cache.rglob("*.*"))  # nothing was exported, nothing compiled
    return messages[0].replace(f"{project.folder}/", ""), caught.value


def lines_of(message: str) -> list[int]:
    return [int(line) for line in re.findall(r"^spec\.yaml:(\d+):\d+: ", message, re.MULTILINE)]


def test_every_mistake_is_told_at_once_with_its_line(project: Any) -> None:
    save_file({"head.weight": torch.zeros(3, 5)}, project.folder / "w.safetensors")
    head = HEAD.replace("model.py:Model", "model.py:Model, weights: w.safetensors")
    message, error = found(
        project,
        f"""\
methods:
  a: {{{PART.replace("parts.0", "part.0")}}}
  b: {{{PART}, call: forwrd}}
  c: {{{PART.replace("x:", "xx:")}}}
  d: {{{PART.replace("[2, 4]", "[2, 5]")}}}
  e: {{{PART}, call: two, outputs: [a]}}
  f: {{{PART}, wrapper: "model.py:Wrapper", args: {{times: 3}}}}
  g: {{{PART}, wrapper: "model.py:Wrapper"}}
  h: {{{PART}, call: replace}}
  i: {{{PART}, call: grow}}
  "j.{{i}}": {{{PART.replace("parts.0", "'parts.{i}'")}, each: {{i: 0..3}}}}
  k: {{{PART.replace("parts.0", "parts")}}}
""",
        head,
    )
    assert isinstance(error, ModelError)
    assert lines_of(message) == [2, *range(6, 17)]
    source = (project.folder / "model.py").read_text().splitlines()
    at = {text.strip(): number for number, text in enumerate(source, 1)}
    too_often, no_help = 'raise ValueError("too often")', 'raise RuntimeError("no help")'
    for said in (
        "'head.weight' has shape [3, 5], the model wants [3, 4]\n  missing key 'head.bias'",
        "methods.a.module: the model has no module 'part.0'; did you mean 'parts.0'",
        "methods.b.call: Part has no method 'forwrd'; did you mean 'forward'",
        "methods.c.inputs: Part.forward takes no input 'xx'; did you mean 'x'?",
        "methods.d.inputs: running it on x float32[2, 5] failed: RuntimeError: mat1 and mat2",
        f"  at model.py:{at['return self.linear(x)']}, in forward: return self.linear(x)\n    9 |",
        "methods.e.outputs: the spec names one output (a), the module returns 2 of shapes [2, 4]",
        "methods.f.wrapper: making model.py:Wrapper of 'parts.0' with {'times': 3} failed: "
        f"ValueError: too often\n  at model.py:{at[too_often]}, in __init__: ",
        "methods.g.inputs: running it on x float32[2, 4] failed: RuntimeError: no help\n"
        f"  at model.py:{at[no_help]}, in helper: raise RuntimeError",
        "methods.h: the module puts another tensor in the place of buffer 'rows'",
        "methods.i: the module changes its input 'x' in place",
        "methods.j.{i}.module: the model has no module 'parts.2'",
        "methods.k.module: ModuleList has no forward; name one of its modules: 0, 1",
    ):
        assert said in message
    assert "site-packages" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        (
            f"  a: {{{PART}, call: put}}\n  b: {{{PART}, call: get}}\n",
            "spec.yaml:6:3: methods.a: buffer 'parts.0.rows' is changed by method 'a' and read by "
            "method 'b'; list it under `state: {shared: [parts.0.rows]}`",
        ),
        (
            f"  a: {{{PART}, call: get}}\n  b: {{{PART}, call: put}}\nstate: {{private: [x]}}\n",
            "spec.yaml:8:1: state: buffer 'parts.0.rows' is changed by method 'b' and read by "
            "method 'a'",
        ),
        (
            f"  a: {{{PART}, call: put}}\nstate: {{shared: ['*.row']}}\n",
            "spec.yaml:7:18: state.shared[0]: no method changes a buffer called '*.row'",
        ),
        (
            f"  a: {{{PART}, call: put}}\nstate: {{shared: ['*.rows']}}\n",
            "spec.yaml:7:18: state.shared[0]: no two methods reach one buffer of '*.rows': "
            "'parts.0.rows' only by 'a'",
        ),
    ],
)
def test_buffers_that_the_spec_leaves_open_or_gets_wrong(
    project: Any, methods: str, says: str
) -> None:
    assert says in found(project, f"methods:\n{methods}")[0]


def test_two_buffers_in_one_memory(project: Any) -> None:
    head = HEAD.replace("model.py:Model", "model.py:Model, args: {shares: true}")
    message, _ = found(project, f"methods:\n  a: {{{PART}, call: put}}\n", head)
    assert "methods.a: method 'a' changes memory that 'parts.0.first' and 'parts" in message
    # Who only reads them may have them.
    project.file("spec.yaml", f"{head}methods:\n  a: {{{PART}, call: get}}\n")
    check(project.path, model=True)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("forwrd", "the model has no method 'forwrd' to compare the flow with; did you mean 'for"),
        ("pair", "the flow's outputs are y; the model's pair gives 2, not 1"),
        ("lifted", "gives y float32[10, 3], the model's lifted float32[1, 10, 3]"),
        ("double", "gives y float32[10, 3], the model's double float64[10, 3]"),
    ],
)
def test_a_reference_that_is_missing_or_unsuitable(project: Any, reference: str, says: str) -> None:
    flow = (
        f"flow:\n  go: {{cut: {{x: chunk}}, steps: [whole], outputs: y, reference: {reference}}}\n"
    )
    message, error = found(project, f"methods:\n{WHOLE}{flow}")
    assert isinstance(error, FlowError)
    assert message.startswith("spec.yaml:8:") and "flow.go.reference: " in message
    assert says in message


def test_a_reference_that_takes_other_inputs(project: Any) -> None:
    steps = "[{run: whole, with: {x: tokens}}]"
    flow = f"flow:\n  go: {{cut: {{tokens: chunk}}, steps: {steps}, outputs: y}}\n"
    message, _ = found(project, f"methods:\n{WHOLE}{flow}")
    assert message.startswith(
        "spec.yaml:8:3: flow.go: the flow is compared with the model's forward"
    )
    assert "the model's forward takes no input 'tokens'; known: x" in message


def test_an_edge_whose_ends_disagree(project: Any) -> None:
    text = f"""\
methods:
{WHOLE}  head: {{module: head, target: plain, inputs: {{input: [chunk, 4]}}, outputs: z}}
flow:
  go:
    cut: {{x: chunk}}
    steps:
      - whole
      - run: head
        with: {{input: y}}
    outputs: z
"""
    message, error = found(project, text)
    assert isinstance(error, FlowError)
    assert message.startswith("spec.yaml:14:23: flow.go.steps[1].with.input: ")
    assert (
        "whole.y -> head.input: gives float32[4, 3], takes float32[chunk=4, 4]: axis 1" in message
    )


def test_a_step_that_keeps_state(project: Any) -> None:
    flow = "flow:\n  go: {cut: {x: chunk}, steps: [put], outputs: out, reference: none}\n"
    put = "  put: {module: parts.0, call: put, target: plain, inputs: {x: [chunk, 4]}}\n"
    message, _ = found(
        project,
        f"methods:\n{put.replace('chunk, 4', 'two, 4')}{flow}".replace("x: chunk}", "x: two}"),
        HEAD.replace("chunk: 4", "two: 2"),
    )
    assert (
        "flow.go.steps[0]: flow 'go': method 'put' has state, the buffer 'parts.0.rows'" in message
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "methods:\n  a: {module: parts.0, target: plain, inputs: {x: [n, 4]}}\n",
            # twice 2,000,000 rows of 4 floats, in and out
            "dims.n.max: method 'a' is compared with eager PyTorch at the maximum too, where "
            "inputs and outputs take 0.13 GB, more than half of the 0.10 GB that are free here",
        ),
        (
            "methods:\n  a: {module: parts.0, target: plain, inputs: {x: [100000000, 4]}}\n",
            "methods.a.inputs: its inputs take 1.60 GB, more than half of the 0.10 GB",
        ),
        (
            "methods:\n  a: {module: parts.0, target: plain}\nsample: {x: [n, 4, 100]}\n",
            "sample: with its dims at their maximum it takes 3.20 GB",
        ),
    ],
)
def test_sizes_that_do_not_fit_into_memory(
    project: Any, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000_000)
    message, _ = found(project, text, HEAD.replace("max: 8", "max: 2000000"))
    assert says in message


def test_what_does_not_fit_can_be_built_without_comparing(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000_000)
    project.model(MODEL, "").file(
        "spec.yaml",
        HEAD.replace("max: 8", "max: 2000000")
        + "methods:\n  a: {module: parts.0, target: plain, inputs: {x: [n, 4]}}\n",
    )
    (method,) = project.build(verify=False).methods
    assert method.signature.dims["n"].max == 2_000_000


def test_memory_is_that_of_the_machine() -> None:
    available = memory.available_memory()
    assert available is not None
    total = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
    assert 0 < available <= total * 1024


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "expected the name of a file, got the empty text"),
        (b"nothing of the kind", "expected a safetensors file, and 'w.bin' is something else"),
        (b"", "expected a safetensors file, and 'w.bin' is empty"),
        (
            b"PK\3\4 what torch.save writes",
            "expected a safetensors file, and 'w.bin' is what torch",
        ),
    ],
)
def test_weights_that_are_no_safetensors_file(
    project: Any, content: bytes | None, says: str
) -> None:
    if content is not None:
        (project.folder / "w.bin").write_bytes(content)
    name = "w.bin" if content is not None else "''"
    head = HEAD.replace("model.py:Model", f"model.py:Model, weights: {name}")
    message, error = found(project, f"methods:\n{WHOLE}", head)
    assert isinstance(error, SpecError)
    assert f"model.weights: {says}" in message


def test_a_real_file_of_torch_save_is_told_as_such(project: Any) -> None:
    torch.save({"head.weight": torch.zeros(3, 4)}, project.folder / "w.pt")
    head = HEAD.replace("model.py:Model", "model.py:Model, weights: w.pt")
    assert "'w.pt' is what torch.save writes" in found(project, f"methods:\n{WHOLE}", head)[0]
