"""Right specs: short forms, templates, and what comes out."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec import (
    InputSpec,
    SpecFile,
    StateSpec,
    StepSpec,
    TargetSpec,
)

Load = Callable[[str], SpecFile]


def test_short_forms(base: str, load: Load) -> None:
    file = load(base)
    spec = file.spec
    assert spec.dims == {"chunk": Dim("chunk", 32, 32), "kv": Dim("kv", 32, 512, 32)}
    assert spec.targets["acc"] == TargetSpec("npu", {"soc": "a1"})
    assert spec.state == StateSpec(("cache.*",), ("scratch",))
    assert spec.flow["prefill"].steps[0] == StepSpec(run="embed")
    assert spec.sample == {"tokens": InputSpec((1, 64), "int64", (0, 255))}
    assert spec.constants == {"max_len": 512, "temperature": 0.5, "name": "base", "greedy": True}
    assert file.methods["embed"].outputs == ("hidden",)
    assert file.methods["attention"].inputs["q"] == InputSpec((1, "chunk", 96))  # type: ignore[index]
    assert file.methods["head"].axes == {"x": {1: "chunk"}}
    assert file.options["acc"].soc == "a1"
    assert file.folder == Path()


def test_a_lane_stands_beside_the_options_and_is_none_of_them(base: str, load: Load) -> None:
    file = load(base.replace("soc: a1", "soc: a1, lane: dsp-1"))
    assert file.spec.targets["acc"] == TargetSpec("npu", {"soc": "a1"}, "dsp-1")
    assert file.spec.targets["ref"].lane is None


def test_expanded_methods(base: str, load: Load) -> None:
    file = load(base)
    assert [m.module for m in file.methods.values()] == [
        "embed", "layers.0", "layers.1", "layers.0.attention", "head",
    ]  # fmt: skip
    assert not any(method.each for method in file.methods.values())


def test_expanded_steps(base: str, load: Load) -> None:
    file = load(base)
    steps = file.steps["prefill"]
    assert [step.run for step in steps] == [
        "embed", "layers.0.qkv", "attention", "layers.1.qkv", "attention", "head",
    ]  # fmt: skip
    assert steps[3].append == {"k": "keys.1", "v": "values.1"}
    assert steps[4].with_ == {"k": "keys.1", "v": "values.1"}


@pytest.mark.parametrize(
    ("each", "values"),
    [
        ("{i: 0..2}", (0, 1, 2)),
        ("{i: -1..1}", (-1, 0, 1)),
        ("{i: [4, a]}", (4, "a")),
        ("{i: 7}", (7,)),
        ("{i: only}", ("only",)),
    ],
)
def test_values_of_each(each: str, values: tuple[int | str, ...], base: str, load: Load) -> None:
    text = base.replace("  head:\n", f"  head.{{i}}:\n    each: {each}\n")
    file = load(text.replace("{run: head, with", f'{{run: "head.{values[0]}", with'))
    assert [name for name in file.methods if name.startswith("head")] == [
        f"head.{value}" for value in values
    ]


def test_product_of_each_and_filled_sizes(base: str, load: Load) -> None:
    text = base.replace(
        "  head:\n",
        "  tail.{i}.{n}:\n"
        "    each: {i: 0..1, n: [chunk, 64]}\n"
        "    module: tail.{i}\n"
        "    wrapper: model.py:Wrapper\n"
        '    args: {layer: "{i}", size: "{n}", name: "t{i}"}\n'
        "    target: ref\n"
        '    inputs: {"x{i}": [1, "{n}", "9{i}"]}\n'
        "  head:\n",
    )
    methods = load(text).methods
    tails = {name: method for name, method in methods.items() if name.startswith("tail")}
    assert list(tails) == ["tail.0.chunk", "tail.0.64", "tail.1.chunk", "tail.1.64"]
    assert tails["tail.0.chunk"].inputs == {"x0": InputSpec((1, "chunk", 90))}
    assert tails["tail.1.64"].inputs == {"x1": InputSpec((1, 64, 91))}
    assert tails["tail.1.64"].args == {"layer": 1, "size": 64, "name": "t1"}


def test_a_cycle_goes_along_with_the_symbol_before_it(base: str, load: Load) -> None:
    text = base.replace(
        "  head:\n",
        "  tail.{i}.{n}:\n"
        "    each: {i: 3..6, kind: {cycle: [near, far, 7]}, n: [a, b], k: {cycle: [0]}}\n"
        "    module: tail.{i}\n"
        "    wrapper: model.py:Wrapper\n"
        '    args: {kind: "{kind}", k: "{k}"}\n'
        "    target: ref\n"
        "    inputs: {x: [1]}\n"
        "  head:\n",
    )
    methods = load(text).methods
    kinds = {name[5:]: m.args["kind"] for name, m in methods.items() if name.startswith("tail")}
    assert kinds == {
        "3.a": "near", "3.b": "near", "4.a": "far", "4.b": "far",
        "5.a": 7, "5.b": 7, "6.a": "near", "6.b": "near",
    }  # fmt: skip
    assert methods["tail.4.b"].args["k"] == 0


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ("{i: {cycle: [a]}}", "a cycle goes along with the symbol before it, and this one is the"),
        ("{i: 0..1, k: {cycle: []}}", "each.k.cycle: expected a range like 0..3, or a list"),
        ("{i: 0..1, k: {cycel: [a]}}", "each.k: the key 'cycle' is missing"),
    ],
)
def test_cycles_that_are_none(each: str, message: str, base: str, load: Load) -> None:
    with pytest.raises(SpecError) as raised:
        load(base.replace("  head:\n", f"  head.{{i}}:\n    each: {each}\n"))
    assert message in str(raised.value)


def test_nested_each_and_each_beside_run(base: str, load: Load) -> None:
    text = base.replace(
        "      - embed\n",
        "      - embed\n"
        "      - each: {a: 0..1}\n"
        "        steps:\n"
        "          - {each: {b: [x, 'y{a}']}, run: embed, gives: {hidden: 'h{a}{b}'}}\n",
    )
    steps = load(text).steps["prefill"][1:5]
    assert [step.gives["hidden"] for step in steps] == ["h0x", "h0y0", "h1x", "h1y1"]


EACH = '  "{name}":\n    each: {name: [prefill, decode], n: {cycle: [chunk, one]}}\n'


def of_each_size(base: str, each: str = EACH) -> str:
    """The base with its methods and its flow in two sizes."""
    text = base.replace("  chunk: 32\n", "  chunk: 32\n  one: 1\n")
    for name in ("embed", "layers.{i}.qkv", "attention", "head"):
        sizes = "n: [chunk, one]"
        text = text.replace(f"  {name}:\n", f"  {name}.{{n}}:\n    each: {{{sizes}}}\n")
        text = text.replace(f"{{{sizes}}}\n    each: {{i: 0..1}}", f"{{i: 0..1, {sizes}}}")
    text = text.replace("chunk]", '"{n}"]').replace("chunk, 96", '"{n}", 96')
    text = text.replace("[chunk, one]", "[chunk, one]").replace("{1: chunk}", '{1: "{n}"}')
    text = text.replace(
        "  prefill:\n    cut: {tokens: chunk}\n", each + '    cut: {tokens: "{n}"}\n'
    )
    text = text.replace("- embed\n", "- embed.{n}\n").replace('.qkv"', '.qkv.{n}"')
    return text.replace("run: attention", 'run: "attention.{n}"').replace(
        "run: head", 'run: "head.{n}"'
    )


def test_a_flow_for_each(base: str, load: Load) -> None:
    text = of_each_size(base).replace('run: "head.{n}"', 'last: head.one, run: "head.{n}"')
    file = load(text)
    assert {name: flow.cut for name, flow in file.spec.flow.items()} == {
        "prefill": {"tokens": "chunk"},
        "decode": {"tokens": "one"},
    }
    assert not any(flow.each for flow in file.spec.flow.values())
    assert [step.run for step in file.steps["decode"]] == [
        "embed.one",
        *("layers.0.qkv.one", "attention.one", "layers.1.qkv.one", "attention.one"),
        "head.one",
    ]
    for name in ("prefill", "decode"):
        assert [step.last for step in file.steps[name]] == [None] * 5 + ["head.one"]
        assert file.steps[name][5].methods == (file.steps[name][5].run, "head.one")
    lines = text.splitlines()
    assert "cut:" in lines[file.locate(("flow", "decode", "cut", "tokens"))[0] - 1]
    assert "head" in lines[file.locate(("steps", "decode", 5, "run"))[0] - 1]
    with pytest.raises(
        SpecError, match=r"flow\.\{name\}\.steps\[2\]\.last: no method is called 'hd.chunk"
    ):
        load(text.replace("last: head.one", 'last: "hd.{n}"'))


STEPS = [
    f"flow.{{name}}.steps[{at}" for at in ("0]", "1].steps[0].run", "1].steps[1].run", "2].run")
]


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ("{name: [a, b], n: [chunk, one]}", ["flow.{name}.each.n"]),
        ("{name: [a, a], n: {cycle: [chunk, one]}}", ["flow.{name}"]),
        ("{name: [a, b], m: {cycle: [chunk, one]}}", ["flow.{name}.cut.tokens", *STEPS]),
        ("{n: [chunk]}", ["flow.{name}", "flow.{name}.each.n"]),
        ("{name: [a, b], n: {cycle: [chunk, oen]}}", ["flow.{name}.cut.tokens", *STEPS]),
        ("7", ["flow.{name}.each"]),
    ],
)
def test_what_is_wrong_with_each_of_a_flow(
    each: str, said: list[str], base: str, load: Load
) -> None:
    """And only that: nothing of what follows from it."""
    text = of_each_size(base, f'  "{{name}}":\n    each: {each}\n')
    assert [where for _, where in said_of(text, load)] == said


def test_two_entries_that_make_one_flow(base: str, load: Load) -> None:
    text = of_each_size(base)
    again = text[text.index('  "{name}"') : text.index("constants:")]
    again = again.replace('"{name}"', "decode").replace(
        "    each: {name: [prefill, decode], n: ", "    each: {n: "
    )
    again = again.replace("{cycle: [chunk, one]}", "[one]").replace("{n}", "one")
    text = text.replace("constants:", again.replace("    each: {n: [one]}\n", "") + "constants:")
    with pytest.raises(SpecError, match="more than one flow would be 'decode'"):
        load(text)


def test_two_axes_of_one_dim_and_other_readers(base: str, load: Load) -> None:
    """What is allowed and looks like a mistake: a fixed dim and its number are one size, a
    fixed size may go where a dynamic dim is taken, names may be given again."""
    text = base.replace(
        "inputs: {q: [1, chunk, 96],", "inputs: {q: [1, 32, 96], hidden: [1, kv, 96],"
    ).replace(
        "inputs: {hidden: [1, chunk, 96]}",
        "inputs: {hidden: [1, 32, 96], positions: {shape: [32], dtype: int64, range: 0..255}}",
    )
    assert load(text).methods


@pytest.mark.parametrize(
    "factory",
    [
        "package.inner:make",
        "star.py:make",
        "json:loads",
        "model.py:Wrapper.make",
        "email.mime.text:MIMEText",
    ],
)
def test_factories_that_may_exist(factory: str, base: str, load: Load) -> None:
    assert load(base.replace("model.py:make", factory))
    assert "package" not in sys.modules


def test_ten_mistakes_at_once(base: str, load: Load) -> None:
    """Mistakes of every kind: in YAML, in types, in templates, in rules and in flows."""
    swaps = {
        "mmpack: 1": "mmpack: 3",
        "model.py:make": "model.py:mke",
        "dtype: int64, range: 0..255}}\ndims": "dtype: int46}}\ndims",
        "  chunk: 32\n": "  chunk: 32\n  chunk: 64\n",
        "max: 512": "max: lots",
        "soc: a1": "soc: a9",
        "module: embed\n": "modul: embed\n",
        "module: layers.{i}\n": "module: layers.{j}\n",
        "outputs: mixed": "outputs: [mixed, mixed]",
        "tolerance: 0.001": "tolerance: -1",
        "private: scratch": 'private: "cache.*"',
        "outputs: logits\nconstants": "outputs: []\nconstants",
        "greedy: true": "greedy: [true]",
    }
    for old, new in swaps.items():
        assert base.count(old) == 1, old
        base = base.replace(old, new)
    with pytest.raises(SpecError) as raised:
        load(base)
    said = [(m.line, m.where) for m in raised.value.mistakes]  # type: ignore[attr-defined]
    assert said == [
        (1, "mmpack"),
        (3, "model.factory"),
        (6, "sample.tokens.dtype"),
        (9, "dims.chunk"),
        (10, "dims.kv.max"),
        (13, "targets.acc.soc"),
        (15, "methods.embed"),
        (16, "methods.embed.modul"),
        (22, "methods.layers.{i}.qkv.module"),
        (32, "methods.attention.outputs[1]"),
        (39, "methods.head.tolerance"),
        (41, "state.private"),
        (54, "flow.prefill.outputs"),
        (55, "constants.greedy"),
    ]


def said_of(text: str, load: Load) -> list[tuple[int, str]]:
    with pytest.raises(SpecError) as raised:
        load(text)
    return [(m.line, m.where) for m in raised.value.mistakes]  # type: ignore[attr-defined]


def test_a_mistake_in_a_method_hides_none_beside_it(load: Load) -> None:
    text = """\
mmpack: 1
model: {factory: model.py:make}
targets: {cpu: {backend: cpu}, acc: {backend: npu, soc: a1}}
sample: {x: [1]}
methods:
  forward: {module: "", target: cpuu, inputs: capturd, outputs: [y, y], call: "a b"}
  matmul: {target: plan, inputs: {a: [mm, 64], b: [64, 0]}, tolerance: x, sqnr: -1}
  "m.{i}": {each: 3, module: "{i}", target: "t{i}", wrapper: model.py:None, precision: 1}
  "n.{i}": {each: {i: 0..1}, module: a, target: no, args: {"not a name": 1}, axes: 4}
  "o.{i}": {each: {i: 0..1}, module: "{j}", target: "{i}", outputs: 7, precision: high}
  "p.{i}": {each: {i: 0..1}, module: a, target: acc, outputs: 7, precision: high}
  max_len: {module: a, target: cpu, outputs: {}}
constants: {max_len: 3}
"""
    wrong = [
        *((6, f"methods.forward.{field}") for field in ("target", "inputs", "outputs[1]", "call")),
        (7, "methods.matmul"),
        *((7, f"methods.matmul.{field}") for field in ("target", "inputs.a[0]", "inputs.b[1]")),
        *((7, f"methods.matmul.{field}") for field in ("tolerance", "sqnr")),
        *((8, f"methods.m.{{i}}.{field}") for field in ("each", "wrapper", "precision")),
        *((9, f"methods.n.{{i}}.{field}") for field in ("target", "args.not a name", "axes")),
        *((10, f"methods.o.{{i}}.{field}") for field in ("module", "outputs")),
        *((11, f"methods.p.{{i}}.{field}") for field in ("outputs", "precision")),
        (12, "methods.max_len"),
        (12, "methods.max_len.outputs"),
    ]
    assert sorted(said_of(text, load)) == sorted(wrong)


def test_a_mistake_in_a_flow_hides_none_beside_it(base: str, load: Load) -> None:
    flow = base[base.index("flow:") : base.index("constants:")]
    wrong = """\
flow:
  measured:
    cut: {tokens: chnk}
    sqnr: abc
    reference: "a b"
    steps: [embd, head]
    outputs: [logits]
  stepped:
    cut: {tokens: chunk}
    steps: [{run: 3}, embd, {each: {i: 0..1}, steps: ["layers.{i}.qvk"]}]
    outputs: 5
  unrolled:
    cut: {tokens: chunk}
    steps: ["layers.{i}.qkv", hed]
    outputs: []
"""
    at = base.index("flow:")
    first = base[:at].count("\n") + 1
    assert said_of(base.replace(flow, wrong), load) == [
        (first + 2, "flow.measured.cut.tokens"),
        (first + 3, "flow.measured.sqnr"),
        (first + 4, "flow.measured.reference"),
        (first + 5, "flow.measured.steps[0]"),
        (first + 9, "flow.stepped.steps[0].run"),
        (first + 9, "flow.stepped.steps[1]"),
        (first + 9, "flow.stepped.steps[2].steps[0]"),
        (first + 10, "flow.stepped.outputs"),
        (first + 13, "flow.unrolled.steps[0]"),
        (first + 13, "flow.unrolled.steps[1]"),
        (first + 14, "flow.unrolled.outputs"),
    ]


def test_a_dim_is_told_all_that_is_wrong_with_it(base: str, load: Load) -> None:
    text = base.replace("  chunk: 32\n", "  chunk: {min: 0, max: 9999999999, step: 0}\n")
    where = [where for _, where in said_of(text, load) if where.startswith("dims")]
    assert where == ["dims.chunk.min", "dims.chunk.max", "dims.chunk.step"]


IMPORTS = """
import sys
from mmpack.multimethod.spec import load_spec
load_spec(sys.argv[1])
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_imports_no_torch(base: str, folder: Path) -> None:
    """In a process of its own, with the real backends: a check must answer at once."""
    path = folder / "spec.yaml"
    path.write_text(base.replace("backend: cpu", "backend: portable")
                    .replace("backend: npu, soc: a1", "backend: xnnpack"))  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS, path], capture_output=True, text=True, check=True
    )
    imported = set(run.stdout.split())
    assert {"attrs", "cattrs", "ruamel"} <= imported
    assert not imported & {"torch", "executorch", "numpy", "rich", "click", "package", "model"}


def test_public_names() -> None:
    from mmpack.multimethod import spec

    assert set(spec.__all__) == {
        "FlowSpec", "InputSpec", "MethodSpec", "Mistake", "Mistakes", "ModelSpec", "Spec",
        "SpecFile", "StateSpec", "StepSpec", "TargetSpec", "agree", "load_spec",
    }  # fmt: skip
    assert all(hasattr(spec, name) for name in spec.__all__)
