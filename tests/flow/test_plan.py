"""Plans: what is cut, joined and cached, and each way in which a flow does not fit its methods."""

from __future__ import annotations

from typing import Any

import pytest

from mmpack.multimethod.errors import FlowError
from mmpack.multimethod.flow.plan import Cut, Kept, make_plan
from mmpack.multimethod.signature import Dim, Signature, ValueSpec
from mmpack.multimethod.spec.records import FlowSpec, StepSpec

DIMS = {
    dim.name: dim
    for dim in (
        Dim("chunk", 4, 4),
        Dim("also", 4, 4),
        Dim("one", 1, 1),
        Dim("batch", 1, 1),
        Dim("kv", 4, 32, 4),
        Dim("length", 4, 16, 4),
        Dim("free", 1, 9),
    )
}


def value(text: str) -> ValueSpec:
    """`k: [1, chunk, 3] int64` (float32 if no dtype is given)."""
    name, _, rest = text.partition(": ")
    shape, _, dtype = rest.strip("[").partition("]")
    sizes = [s.strip() for s in shape.split(",") if s.strip()]
    return ValueSpec(
        name, dtype.strip() or "float32", tuple(int(s) if s.isdigit() else s for s in sizes)
    )


def method(name: str, inputs: list[str], outputs: list[str]) -> Signature:
    taken = tuple(map(value, inputs))
    dims = {d: DIMS[d] for v in taken for d in v.shape or () if isinstance(d, str)}
    return Signature(name, taken, tuple(map(value, outputs)), dims)


def planned(
    methods: list[Signature],
    steps: list[Any],
    cut: dict[str, str] | None = None,
    outputs: list[str] | None = None,
    kept: Kept | None = None,
) -> Any:
    flow = FlowSpec(
        cut=cut if cut is not None else {"x": "chunk"},
        steps=tuple(StepSpec(run=s) if isinstance(s, str) else StepSpec(**s) for s in steps),
        outputs=tuple(outputs or ["y"]),
    )
    return make_plan("go", flow, {m.method: m for m in methods}, kept)


QKV = method("qkv", ["x: [batch, chunk, 3]"], ["q: [1, 4, 3]", "k: [1, 4, 3]"])
ATTEND = method(
    "attend",
    ["q: [1, chunk, 3]", "k: [batch, kv, 3]", "positions: [chunk] int64"],
    ["y: [1, 4, 3]"],
)
STEPS: list[Any] = [
    {"run": "qkv", "append": {"k": "keys"}},
    {"run": "attend", "with_": {"k": "keys"}},
]


def test_a_plan_knows_the_axes_and_has_numbers_for_fixed_dims() -> None:
    plan = planned([QKV, ATTEND], STEPS)
    assert plan.size == 4
    assert plan.cuts == {"x": Cut(ValueSpec("x", "float32", (1, 4, 3)), 1, 4)}
    assert plan.caches["keys"].axis == 1
    assert plan.caches["keys"].dim == DIMS["kv"]
    assert plan.caches["keys"].value.shape == (1, "kv", 3)
    assert plan.joins == {"y": 1}
    assert plan.steps[1].inputs == (("q", "q"), ("k", "keys"), ("positions", "positions"))


def test_of_two_axes_of_the_pieces_size_that_of_the_cut_is_joined() -> None:
    square = method("square", ["x: [4, chunk]"], ["y: [4, 4]"])
    assert planned([square], ["square"]).joins == {"y": 1}


def test_dims_of_one_size_may_cut_two_inputs() -> None:
    two = method("two", ["x: [chunk, 3]", "z: [also]"], ["y: [4]"])
    assert set(planned([two], ["two"], {"x": "chunk", "z": "also"}).cuts) == {"x", "z"}


A = method("a", ["x: [chunk, 3]"], ["y: [4, 3]"])


def test_dims_of_methods_that_the_flow_does_not_run_are_not_its_own() -> None:
    """A method that was linked in from elsewhere may use the same names for other sizes."""
    other = Signature("other", (value("x: [chunk]"),), (), {"chunk": Dim("chunk", 1, 9)})
    assert planned([A, other], ["a"]) == planned([A], ["a"])


def test_where_nothing_is_known_the_message_ends_with_what_is_wrong() -> None:
    with pytest.raises(FlowError) as caught:
        planned([], ["a"], {"x": "chunk"})
    assert str(caught.value) == "flow 'go': there is no method 'a'"


@pytest.mark.parametrize(
    ("methods", "steps", "options", "says"),
    [
        ([A], ["b"], {}, "there is no method 'b'; known: a"),
        (
            [A],
            [{"run": "a", "with_": {"z": "x"}}],
            {},
            "a has no input 'z'; known: x",
        ),
        ([A], [{"run": "a", "gives": {"yy": "z"}}], {}, "a has no output 'yy'; did you mean 'y'?"),
        ([A], [{"run": "a", "append": {"yy": "z"}}], {}, "a has no output 'yy'; did you mean 'y'?"),
        (
            [A, method("b", ["w: [chunk, 3]"], ["y: [4, 3]"])],
            ["a", "b"],
            {},
            "nothing gives 'w', which b.w takes; known: positions, x, y",
        ),
        ([A], ["a"], {"outputs": ["z"]}, "no step gives 'z'; known: y"),
        ([A], ["a"], {"outputs": ["x"]}, "no step gives 'x'; known: y"),
        (
            [A, method("b", ["y: [chunk, 2]"], ["z: [4, 2]"])],
            ["a", "b"],
            {},
            "a.y -> b.y: gives float32[4, 3], takes float32[chunk=4, 2]: axis 1 differs",
        ),
        (
            [A, method("b", ["y: [chunk, 3] int64"], ["z: [4, 2]"])],
            ["a", "b"],
            {},
            "a.y -> b.y: gives float32[4, 3], takes int64[chunk=4, 3]: the dtypes differ",
        ),
        (
            [A, method("b", ["y: [chunk]"], ["z: [4, 2]"])],
            ["a", "b"],
            {},
            "a.y -> b.y: gives float32[4, 3], takes float32[chunk=4]: the number of axes differs",
        ),
        (
            [method("a", ["x: [chunk]", "positions: [chunk]"], ["y: [4]"])],
            ["a"],
            {},
            "positions -> a.positions: gives int64[4], takes float32[chunk=4]: the dtypes differ",
        ),
        (
            [method("a", ["x: [chunk]", "positions: [2] int64"], ["y: [4]"])],
            ["a"],
            {},
            "positions -> a.positions: gives int64[4], takes int64[2]: axis 0 differs",
        ),
        # What is cut
        ([A], ["a"], {"cut": {"x": "chnk"}}, "no method takes the dim 'chnk', which cuts 'x'"),
        (
            [method("a", ["x: [free]"], ["y: [free]"])],
            ["a"],
            {"cut": {"x": "free"}},
            "pieces of 'x' are all of one size, and free=1..9 is not fixed",
        ),
        (
            [method("a", ["x: [chunk, one]"], ["y: [4]"])],
            ["a"],
            {"cut": {"x": "chunk", "z": "one"}},
            "all inputs are cut in pieces of one size, got chunk=4 and one=1",
        ),
        ([A], ["a"], {"cut": {}}, "all inputs are cut in pieces of one size, got nothing is cut"),
        (
            [A],
            ["a"],
            {"cut": {"x": "chunk", "z": "chunk"}},
            "no step takes its input 'z'",
        ),
        (
            [method("a", ["x: [4, 3]", "w: [chunk]"], ["y: [4]"])],
            ["a"],
            {"cut": {"x": "chunk", "w": "chunk"}},
            "a.x must have the dim 'chunk' on one axis to be cut by it",
        ),
        (
            [method("a", ["x: [chunk, chunk]"], ["y: [4]"])],
            ["a"],
            {},
            "a.x must have the dim 'chunk' on one axis to be cut by it",
        ),
        (
            [method("a", ["x: [chunk, free]"], ["y: [4]"])],
            ["a"],
            {},
            "a.x: x: float32[chunk=4, free=1..9] has a dynamic dim besides axis 0",
        ),
        (
            [A, method("b", ["x: [chunk, 3] int64"], ["z: [4]"])],
            ["a", "b"],
            {},
            "b.x takes x: int64[chunk=4, 3], another step took 'x' as x: float32[4, 3]",
        ),
        (
            [A, method("b", ["x: [4, chunk]"], ["z: [4]"])],
            ["a", "b"],
            {},
            "b.x takes x: float32[4, chunk=4], another step took 'x' as x: float32[4, 3]",
        ),
        # Caches
        ([A], [{"run": "a", "append": {"y": "c"}}], {}, "cache 'c' is appended to and never read"),
        ([QKV, ATTEND], STEPS[::-1], {}, "nothing gives 'q', which attend.q takes"),
        (
            [QKV, method("b", ["k: [batch, chunk, 3]"], ["y: [4]"])],
            [STEPS[0], {"run": "b", "with_": {"k": "keys"}}],
            {},
            "qkv.k -> keys -> b.k: gives float32[1, 4, 3], takes float32[batch=1, chunk=4, 3]: to "
            "grow, they must differ in exactly one axis, a dynamic dim of the reader",
        ),
        (
            [QKV, method("b", ["k: [batch, kv, 2]"], ["y: [4]"])],
            [STEPS[0], {"run": "b", "with_": {"k": "keys"}}],
            {},
            "qkv.k -> keys -> b.k: gives float32[1, 4, 3], takes float32[batch=1, kv=4..32:4, 2]",
        ),
        (
            [QKV, ATTEND, method("b", ["k: [batch, length, 3]"], ["y: [4]"])],
            [*STEPS, {"run": "b", "with_": {"k": "keys"}}],
            {},
            "qkv.k -> keys -> b.k: another step reads it with kv=4..32:4, not length=4..16:4",
        ),
        (
            [method("qkv", ["x: [chunk, 3]"], ["q: [1, 4, 3]", "k: [1, 8, 3]"]), ATTEND],
            STEPS,
            {},
            "qkv.k -> keys -> attend.k: axis 1 grows by 8 for each piece of 4",
        ),
        (
            [QKV, ATTEND],
            [STEPS[0], {"run": "qkv", "append": {"k": "keys"}}, STEPS[1]],
            {},
            "both qkv and qkv append to cache 'keys'",
        ),
        (
            [
                method("qkv", ["x: [chunk, 3]", "w: [free]"], ["k: [free, 4]"]),
                method("b", ["k: [free, kv]"], ["y: [4]"]),
            ],
            [{"run": "qkv", "with_": {"w": "w"}, "append": {"k": "keys"}}, "b"],
            {"cut": {"x": "chunk"}},
            "nothing gives 'w'",
        ),
        # Outputs
        (
            [method("a", ["x: [chunk]"], ["y: [3]"])],
            ["a"],
            {},
            "output y: float32[3] of a must have one axis of size 4 to be joined along",
        ),
        (
            [method("a", ["x: [3, 3, chunk]"], ["y: [4, 4]"])],
            ["a"],
            {},
            "output y: float32[4, 4] of a must have one axis of size 4 to be joined along",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    methods: list[Signature], steps: list[Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(FlowError) as caught:
        planned(methods, steps, **options)
    assert str(caught.value).startswith("flow 'go': ")
    assert says in str(caught.value)
    assert not str(caught.value).endswith(";")


HEAD = method("head", ["y: [1, chunk, 3]", "x: [batch, chunk, 3]"], ["z: [1, 4, 9]"])
ONE = method("one", ["x: [1, 1, 3]", "y: [batch, one, 3]"], ["z: [1, 1, 9]"])
LAST: dict[str, Any] = {"run": "head", "last": "one"}


def test_a_plan_knows_where_the_rows_are_that_are_taken_alone() -> None:
    plan = planned([QKV, ATTEND, HEAD, ONE], [*STEPS, LAST], outputs=["z", "y"])
    assert plan.rows == {"y": 1, "x": 1}
    assert [step.methods for step in plan.steps] == [("qkv",), ("attend",), ("head", "one")]
    square = method("square", ["x: [4, chunk]"], ["y: [4, 4]"])
    column = method("column", ["x: [4, one]"], ["y: [4, 1]"])
    assert planned([square, column], [{"run": "square", "last": "column"}]).rows == {"x": 1}


def test_what_such_steps_give_each_other_is_not_taken_from_elsewhere() -> None:
    again = {**LAST, "with_": {"y": "z"}, "gives": {"z": "w"}}
    first = {"run": "a", "last": "b", "gives": {"y": "z"}}
    a = method("a", ["y: [1, chunk, 3]"], ["y: [1, 4, 3]"])
    b = method("b", ["y: [1, one, 3]"], ["y: [1, 1, 3]"])
    methods = [QKV, ATTEND, HEAD, ONE, a, b]
    assert planned(methods, [*STEPS, first, again], outputs=["w", "z"]).rows == {"y": 1, "x": 1}


def test_where_a_piece_is_a_row_nothing_is_taken_alone() -> None:
    plan = planned([A_ROW], [{"run": "row", "last": "row"}], {"x": "one"})
    assert plan.rows == {} and plan.steps[0].last is None


A_ROW = method("row", ["x: [batch, one, 3]"], ["y: [1, 1, 3]"])


@pytest.mark.parametrize(
    ("others", "last", "says"),
    [
        ([], {"last": "oen"}, "there is no method 'oen'; did you mean 'one'?"),
        (
            [method("one", ["x: [1, 1, 3]", "w: [1, one, 3]"], ["z: [1, 1, 9]"])],
            {},
            "one has the inputs x, w; expected those of head: y, x",
        ),
        (
            [method("one", ["x: [1, 1, 3]", "y: [1, one, 3]"], ["z: [1, 1, 9]", "w: [1]"])],
            {},
            "one has the outputs z, w; expected those of head: z",
        ),
        (
            [method("one", ["x: [1, 1, 3]", "y: [1, chunk, 3]"], ["z: [1, 1, 9]"])],
            {},
            "input 'y' of one: expected float32[1, chunk=4, 3] with 1 row in place of 4, got "
            "float32[1, chunk=4, 3]",
        ),
        (
            [method("one", ["x: [1, 1, 3]", "y: [1, one, 3] int64"], ["z: [1, 1, 9]"])],
            {},
            "with 1 row in place of 4, got int64[1, one=1, 3]",
        ),
        (
            [method("one", ["x: [1, 1, 3]", "y: [1, one, 3]"], ["z: [1, 1, 8]"])],
            {},
            "output 'z' of one: expected float32[1, 4, 9] with 1 row in place of 4, got "
            "float32[1, 1, 8]",
        ),
    ],
)
def test_what_is_no_method_for_the_last_row(
    others: list[Signature], last: dict[str, Any], says: str
) -> None:
    methods = [QKV, ATTEND, HEAD, ONE, *others]
    with pytest.raises(FlowError) as caught:
        planned(methods, [*STEPS, {**LAST, **last}], outputs=["z"])
    assert str(caught.value).startswith("flow 'go': ") and says in str(caught.value)
    assert caught.value.keys == ("steps", "go", 2, "last")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (0, "`last` is for steps that append nothing, and this one appends to 'keys'"),
        (1, "`last` is for steps that read no cache, and this one reads 'keys'"),
        (2, "attend stands behind a, which has `last: a`, so it must have a `last` too"),
    ],
)
def test_steps_that_cannot_have_such_a_method(number: int, says: str) -> None:
    steps: list[Any] = [dict(step) for step in STEPS]
    if number < 2:
        steps[number]["last"] = "one"
    else:
        steps.insert(0, {"run": "a", "last": "row", "gives": {"y": "u"}})
    a = method("a", ["x: [batch, chunk, 3]"], ["y: [1, 4, 3]"])
    with pytest.raises(FlowError) as caught:
        planned([QKV, ATTEND, ONE, a, A_ROW], steps)
    says = says.replace("attend stands", "qkv stands").replace("last: a", "last: row")
    assert says in str(caught.value)


def test_positions_are_not_of_one_row() -> None:
    where = method("where", ["positions: [chunk] int64"], ["y: [4]"])
    row = method("row", ["positions: [1] int64"], ["y: [1]"])
    with pytest.raises(FlowError, match="is for steps that take no positions"):
        planned([A, where, row], ["a", {"run": "where", "last": "row"}])


def test_rows_lie_along_one_axis() -> None:
    square = method("square", ["x: [4, chunk]"], ["y: [4, 4]"])
    rows = method("rows", ["x: [1, 4]"], ["y: [1, 4]"])
    turned = method("turned", ["x: [4, one]"], ["y: [1, 4]"])
    wide = method("wide", ["y: [4, 4]"], ["z: [4, 4]"])
    tall = method("tall", ["y: [4, 1]"], ["z: [4, 1]"])
    methods = [square, rows, turned, wide, tall]
    by_column: Any = {"run": "square", "last": "turned"}
    for steps, says in (
        (
            [{"run": "square", "last": "rows"}],
            "the rows of 'x' are along axis 1, rows takes one along axis 0",
        ),
        (
            [by_column],
            "pieces of 'y' are joined along axis 1, a step's `last` has its rows along axis 0",
        ),
        (
            [by_column, {"run": "wide", "last": "tall"}],
            "the rows of 'y' are along axis 0, tall takes one along axis 1",
        ),
    ):
        with pytest.raises(FlowError) as caught:
            planned(methods, steps)
        assert says in str(caught.value)


@pytest.mark.parametrize("keeper", ["head", "one"])
def test_state_is_kept_by_neither(keeper: str) -> None:
    kept = Kept({"m.seen": (keeper,)})
    with pytest.raises(FlowError) as caught:
        planned([QKV, ATTEND, HEAD, ONE], [*STEPS, LAST], outputs=["z"], kept=kept)
    assert str(caught.value) == (
        f"flow 'go': `last` is for steps that keep no state, and method {keeper!r} has some, the "
        "buffer 'm.seen'"
    )
    assert caught.value.keys == ("steps", "go", 2, "last")
