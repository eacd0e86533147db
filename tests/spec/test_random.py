"""Right specs come back as they were; wrong ones raise a SpecError and nothing else."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mmpack.multimethod.errors import SpecError
from mmpack.multimethod.signature import DTYPES, Dim
from mmpack.multimethod.spec import (
    FlowSpec,
    InputSpec,
    MethodSpec,
    ModelSpec,
    Spec,
    SpecFile,
    StateSpec,
    StepSpec,
    TargetSpec,
)
from mmpack.multimethod.spec.records import Cycle, Each
from mmpack.multimethod.spec.structure import unstructure

BASE = (Path(__file__).parent / "goldens" / "base.yaml").read_text()
fast = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Load = Callable[[str | bytes], SpecFile]

names = st.sampled_from(["a", "b", "x1", "hidden", "no", "on", "null", "true", "é", "_"])
# The last three are ends of lines to the YAML library, which folds them when it writes.
odd = "{}\x85\u2028\u2029"
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=odd), max_size=12)
tricky = st.sampled_from(["yes", "0..3", "1_000", "1e3", "~", "", "2001-01-01", "'", ": ", "# x"])
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    tricky,
)
plain = st.recursive(
    scalars | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


def dims(name: str) -> st.SearchStrategy[Dim]:
    def make(step: int, low: int, more: int) -> Dim:
        return Dim(name, low * step, (low + more) * step, step)

    return st.builds(make, st.integers(1, 64), st.integers(1, 8), st.integers(0, 8))


@st.composite
def inputs(draw: st.DrawFn, known: list[str]) -> InputSpec:
    sizes = st.integers(1, 4096) | (st.sampled_from(known) if known else st.nothing())
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    ends = st.tuples(st.integers(0, 60), st.integers(60, 127))
    integers = "int" in dtype
    return InputSpec(
        tuple(draw(st.lists(sizes, max_size=4))), dtype, draw(ends) if integers else None
    )


@st.composite
def methods(draw: st.DrawFn, name: str, known: list[str], targets: list[str]) -> MethodSpec:
    each: Each = {}
    if "{i}" in name:
        values = st.integers(0, 99) | st.sampled_from(["p", "q"])
        each = {"i": tuple(draw(st.lists(values, min_size=1, max_size=4, unique=True)))}
        if draw(st.booleans()):
            each["j"] = Cycle(tuple(draw(st.lists(values, min_size=1, max_size=3))))
    wrapped = draw(st.booleans())
    captured = draw(st.booleans())
    axes = st.dictionaries(
        names, st.dictionaries(st.integers(0, 4), st.sampled_from(known)) if known else st.just({})
    )
    return MethodSpec(
        module=draw(texts | tricky),
        target=draw(st.sampled_from(targets)),
        wrapper="model.py:Wrapper" if wrapped else None,
        args=draw(st.dictionaries(st.sampled_from("abc"), plain)) if wrapped else {},
        call=None if wrapped else draw(st.sampled_from([None, "encode"])),
        inputs="captured" if captured else draw(
            st.dictionaries(st.sampled_from(["q", "k", "é"]), inputs(known), max_size=3)
        ),
        axes=draw(axes) if captured else {},
        outputs=tuple(draw(st.lists(st.sampled_from(["o", "p", "r"]), unique=True))),
        tolerance=draw(st.none() | st.floats(1e-9, 1)),
        each=each,
    )  # fmt: skip


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any right spec, with a flow that runs one of the methods once."""
    known = draw(st.lists(st.sampled_from(["c", "kv", "on", "n"]), unique=True))
    targets = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    titles = draw(
        st.lists(
            st.sampled_from(["m", "layers.{i}.q", "x{i}", "1.5", "yes"]),
            min_size=1, max_size=4, unique=True,
        )
    )  # fmt: skip
    made = {title: draw(methods(title, known, targets)) for title in titles}
    start = MethodSpec("", targets[0], inputs={"t": InputSpec((1, "piece"))}, outputs=("u",))
    flow = FlowSpec({"t": "piece"}, (StepSpec("start", gives={"u": "w"}),), ("w",))
    patterns = draw(st.lists(texts.filter(bool), unique=True, max_size=4))
    half = len(patterns) // 2
    return Spec(
        mmpack=1,
        model=ModelSpec("model.py:make", draw(st.dictionaries(names, plain, max_size=3))),
        targets={name: TargetSpec("cpu", lane=draw(st.none() | st.just("big"))) for name in targets}
        | {"npu": TargetSpec(
            "npu", {"soc": "a1", "fast": draw(st.booleans()), "threads": draw(st.integers(1, 9))})},
        methods={"start": start, **made},
        dims={"piece": Dim("piece", 8, 8)} | {name: draw(dims(name)) for name in known},
        sample=draw(st.just("model.py:sample") | st.just({"t": InputSpec((1, 3))})),
        state=StateSpec(tuple(patterns[:half]), tuple(patterns[half:])),
        flow=draw(st.sampled_from([{}, {"f": flow}])),
        constants=draw(st.dictionaries(st.sampled_from(["k1", "k2"]), scalars)),
        files=draw(st.dictionaries(names, st.sampled_from(["model.py", "./package/inner.py"]))),
    )  # fmt: skip


def dump(data: Any) -> str:
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.default_flow_style = False  # in brackets, it does not read `?0` as it wrote it
    yaml.dump(data, stream)
    return stream.getvalue()


@fast
@given(spec=specs())
def test_round_trip(spec: Spec, load: Load) -> None:
    read = load(dump(unstructure(spec))).spec
    assert read == spec
    assert list(read.methods) == list(spec.methods)


def refuses_or_loads(load: Load, text: str | bytes) -> None:
    with contextlib.suppress(SpecError):
        load(text)


@fast
@given(raw=st.binary(max_size=200))
def test_garbage(raw: bytes, load: Load) -> None:
    with pytest.raises(SpecError) as raised:
        load(raw)
    assert str(raised.value).startswith("spec.yaml")


@fast
@given(text=st.text("{}[]:,-&*!|>'\"%@`?# \t\n\rab01.~<=é\u2028\ufeff", max_size=60))
def test_garbage_that_looks_like_yaml(text: str, load: Load) -> None:
    with pytest.raises(SpecError):
        load(text)


@fast
@given(data=st.data())
def test_mutated_text(data: st.DataObject, load: Load) -> None:
    """Some pieces of a right spec cut out, doubled, or replaced."""
    text = BASE
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        insert = st.sampled_from(
            ["", " ", "\n", "{", "}", "[", "]", ": ", "- ", ", ", "'", '"', "&a ", "*a", "!!int ",
             "0..3", "{i}", "{x}", "{", "-1", "1e9", "null", "yes", "\t", "<<: ", "#", "|", "\0"]
        )  # fmt: skip
        text = text[:start] + data.draw(insert | st.just(text[start:end] * 2)) + text[end:]
    refuses_or_loads(load, text)


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(data, dict | list):
        items = list(data.items() if isinstance(data, dict) else enumerate(data))
    inner = [p for key, value in items for p in paths(value, (*path, key))]
    return [path, *inner] if path else inner


TREE = YAML(typ="safe", pure=True).load(BASE)
PATHS = paths(TREE)
VALUES = plain | st.sampled_from(
    ["{i}", "{x}", "captured", "chunk", "kv", "ref", "acc", "embed", "keys.0", "0..9999999", "3..1",
     "model.py", "a.b:c", ":", ".py:x", "x.py:", "\0.py:a", "a" * 300 + ".py:b", "positions", "..",
     10**30, -1, 0, float("nan"), float("inf"), [["embed"]], {"i": "0..1"}, {"i": [], "j": "{i}"}]
)  # fmt: skip


@fast
@given(data=st.data())
def test_mutated_values(data: st.DataObject, load: Load) -> None:
    """Some values replaced, some keys renamed or left out: right YAML, wrong specs."""
    tree = copy.deepcopy(TREE)
    for path in data.draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=5)):
        parent = tree
        with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError):
            for key in path[:-1]:
                parent = parent[key]
            match data.draw(st.sampled_from(["value", "value", "drop", "rename"])):
                case "value":
                    parent[path[-1]] = data.draw(VALUES)
                case "drop":
                    del parent[path[-1]]
                case "rename":
                    parent[data.draw(texts | st.integers(0, 3))] = parent.pop(path[-1])
    refuses_or_loads(load, dump(tree))
