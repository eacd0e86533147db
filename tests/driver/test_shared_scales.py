"""One tensor has one scale, at both ends of an edge, in caches, and in state that is shared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.compile.calls import Examples
from mmpack.multimethod.compile.state import State
from mmpack.multimethod.driver.shared_scales import (
    one_tensor,
    require_one_scale,
    with_common_ranges,
)
from mmpack.multimethod.errors import CompileError, LinkError, VerifyError
from mmpack.multimethod.flow.plan import Plan, Step
from mmpack.multimethod.link import PteFile, link, read_manifest


def plan(name: str, steps: list[Step], caches: tuple[str, ...] = ()) -> Plan:
    return Plan(name, {}, dict.fromkeys(caches), tuple(steps), {}, "none", 1)  # type: ignore[arg-type]


def test_places_that_one_tensor_passes() -> None:
    prefill = plan(
        "prefill",
        [
            Step("qkv", (("x", "x"),), (("q", "q"), ("x", "x")), (("k", "keys"),)),
            Step("attend", (("q", "q"), ("k", "keys")), (("y", "y"),), ()),
            Step("mlp", (("h", "x"), ("y", "y")), (), ()),
        ],
        ("keys",),
    )
    decode = plan("decode", [Step("one", (("x", "x"),), (), (("k", "keys"),))], ("keys",))
    every = {"qkv", "attend", "mlp", "one"}
    state = State({"cache": ("one", "qkv")}, {"own": ("mlp",)}, {})
    assert {frozenset(group) for group in one_tensor([prefill, decode], state, every)} == {
        frozenset([("qkv", ("output", "q")), ("attend", ("input", "q"))]),
        frozenset([("attend", ("output", "y")), ("mlp", ("input", "y"))]),
        frozenset([("qkv", ("output", "x")), ("mlp", ("input", "h"))]),
        frozenset([("qkv", ("output", "k")), ("attend", ("input", "k")), ("one", ("output", "k"))]),
        frozenset([("one", ("state", "cache")), ("qkv", ("state", "cache"))]),
    }
    # Where attention is float, only who writes to one cache is held together.
    assert {
        frozenset(g) for g in one_tensor([prefill, decode], State({}, {}, {}), every - {"attend"})
    } == {
        frozenset([("qkv", ("output", "x")), ("mlp", ("input", "h"))]),
        frozenset([("qkv", ("output", "k")), ("one", ("output", "k"))]),
    }


def test_a_method_for_the_last_row_has_the_same_tensors() -> None:
    steps = [
        Step("mlp", (("x", "x"),), (("x", "x"),), ()),
        Step("norm", (("x", "x"),), (("y", "x"),), (), "norm.one"),
        Step("head", (("x", "x"),), (("z", "z"),), (), "head.one"),
    ]
    every = {"mlp", "norm", "norm.one", "head", "head.one"}
    groups = one_tensor([plan("prefill", steps)], State({}, {}, {}), every)
    assert {frozenset(group) for group in groups} == {
        frozenset([("mlp", ("output", "x")), *((m, ("input", "x")) for m in ("norm", "norm.one"))]),
        frozenset([
            *((m, ("output", "y")) for m in ("norm", "norm.one")),
            *((m, ("input", "x")) for m in ("head", "head.one")),
        ]),
        frozenset((m, ("output", "z")) for m in ("head", "head.one")),
    }  # fmt: skip


def test_all_ends_of_a_tensor_get_its_whole_range() -> None:
    ranges = {
        "a": {("output", "y"): (-1.0, 2.0), ("input", "x"): (0.0, 9.0)},
        "b": {("input", "y"): (-3.0, 1.0)},
    }
    examples = Examples(Path(), {}, {}, ranges)
    together = ((("a", ("output", "y")), ("b", ("input", "y")), ("float", ("input", "y"))),)
    assert with_common_ranges(examples, together).ranges == {
        "a": {("output", "y"): (-3.0, 2.0), ("input", "x"): (0.0, 9.0)},
        "b": {("input", "y"): (-3.0, 2.0)},
    }
    assert ranges["b"] == {("input", "y"): (-3.0, 1.0)}


def figures(scale: float, zero_point: int) -> dict[str, object]:
    plain = {"scale": scale, "zero_point": zero_point, "low": 0, "high": 255, "dtype": "uint8"}
    return {"scales": [["input", "x", [plain]]]}


def test_a_tensor_that_two_methods_quantize_differently_is_refused() -> None:
    together = ((("a", ("input", "x")), ("b", ("input", "x")), ("float", ("input", "x"))),)
    require_one_scale(together, {"a": figures(0.5, 3), "b": figures(0.5, 3), "float": {}})
    with pytest.raises(CompileError) as raised:
        require_one_scale(together, {"a": figures(0.5, 3), "b": figures(0.25, 7), "float": {}})
    assert str(raised.value).startswith(
        "input 'x' of a and input 'x' of b are one tensor, and are quantized differently: with "
        "uint8 scale 0.5 zero point 3, and with uint8 scale 0.25 zero point 7\n"
    )


MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
    def forward(self, x):
        return self.second(self.first(x))

def examples():
    generator = torch.Generator().manual_seed(3)
    for i in range(4):
        yield torch.randn(1, 4, 32, generator=generator)

def larger():
    for sample in examples():
        yield sample * 3
"""
FLOW = """
dims: {n: 4}
calibration: model.py:examples
methods:
  first: {module: first, target: q, inputs: {input: [1, n, 32]}, outputs: h}
  second: {module: second, target: q, MORE inputs: {input: [1, n, 32]}, outputs: y}
flow:
  whole:
    cut: {x: n}
    steps: [{run: first, with: {input: x}}, {run: second, with: {input: h}}]
    outputs: [y]
"""
HEAD = """\
mmpack: 1
model: {factory: model.py:make}
targets: {q: {backend: xnnpack, precision: 8a8w}}
"""


def scales(project: Any) -> dict[tuple[str, str, str], Any]:
    with PteFile.open(project.output) as file:
        manifest = read_manifest(file)
        assert manifest is not None
        return {
            (method, kind, name): found
            for method, record in manifest.methods.items()
            for kind, name, found in record.scales
        }


@pytest.mark.parametrize("more", ["", "calibration: model.py:larger,"])
def test_both_ends_of_an_edge_have_one_scale(project: Any, more: str) -> None:
    project.model(MODEL).spec(FLOW.replace("MORE", more), head=HEAD)
    report = project.build()
    found = scales(project)
    assert found["first", "output", "h"] == found["second", "input", "input"]
    assert found["first", "input", "input"] != found["second", "input", "input"]
    (flow,) = report.flows
    assert flow.sqnr is not None and flow.least_sqnr is not None and flow.right


def test_a_build_whose_ends_disagree_is_stopped(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = sys.modules["mmpack.multimethod.driver.parts"]
    monkeypatch.setattr(parts, "with_common_ranges", lambda examples, together: examples)
    spec = FLOW.replace("MORE", "calibration: model.py:larger,")
    project.model(MODEL).spec(spec, head=HEAD)
    with pytest.raises(CompileError) as raised:
        project.build()
    assert "output 'h' of first and input 'input' of second are one tensor" in str(raised.value)
    assert str(raised.value).count("int8 scale") == 2
    assert not project.output.exists()


COUNTING = """
class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("total", torch.zeros(1, 32))
    def forward(self, x):
        self.total.add_(self.linear(x))
        return self.total * 1.0

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.counter = Counter()
    def forward(self, x):
        return self.counter(x)

def examples(by=1.0):
    generator = torch.Generator().manual_seed(3)
    for i in range(4):
        yield by * torch.rand(1, 32, generator=generator)

def larger():
    return examples(3.0)
"""


def test_programs_built_apart_share_state_only_with_one_scale(project: Any) -> None:
    project.model(COUNTING)
    paths = {}
    for name, examples in (("f", "examples"), ("g", "examples"), ("h", "larger")):
        method = "{module: counter, target: q, sqnr: 10, inputs: {x: [1, 32]}}"
        project.spec(f"calibration: model.py:{examples}\nmethods:\n  {name}: {method}\n", head=HEAD)
        paths[name] = project.folder / f"{name}.pte"
        project.build(output=paths[name])
    linked = project.folder / "linked.pte"
    (state,) = link([paths["f"], paths["g"]], linked, shared=["counter.total"]).state
    assert state.methods == ("f", "g")
    link([paths["f"], paths["h"]], linked, private=["*"])
    with pytest.raises(LinkError) as raised:
        link([paths["f"], paths["h"]], linked, shared=["counter.total"])
    assert "buffer 'counter.total' is shared, but its scales are not the same: int8 scale " in str(
        raised.value
    )
    for name in ("f", "h"):
        with PteFile.open(paths[name]) as file:
            manifest = read_manifest(file)
        assert manifest is not None
        ((_, _, (scale,)),) = [s for s in manifest.methods[name].scales if s[0] == "state"]
        assert f"{scale} in method {name!r}" in str(raised.value)


def test_a_flow_may_be_held_to_a_ratio_of_its_own(project: Any) -> None:
    spec = FLOW.replace("MORE", "").replace("    outputs: [y]", "    outputs: [y]\n    sqnr: 90")
    project.model(MODEL).spec(spec, head=HEAD)
    with pytest.raises(VerifyError) as raised:
        project.build()
    assert f"{project.path}:" in str(raised.value)
    assert ": flow whole: output 'y' at 4 rows has a signal-to-" in str(raised.value)
    assert str(raised.value).endswith("at least 90.0 dB is wanted")
