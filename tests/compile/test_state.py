"""State: which buffers methods share is said, never guessed, and holds when the program runs.

What the programs compute is held against the same calls in eager PyTorch.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpack.multimethod.compile.state import State, Touched, decide
from mmpack.multimethod.errors import ModelError
from mmpack.multimethod.flow.program import Program, load

MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.tensor([7.0, 0.0, -1.0]))
        self.register_buffer("rows", torch.zeros(4, 3), persistent=False)
        self.register_buffer("count", torch.zeros(1))
        self.table = nn.Parameter(torch.arange(3.0))
    def forward(self, x):
        return x
    def add(self, x):
        self.total.add_(x)
        return self.total * 1
    def scaled(self, x):
        return self.total * x + self.table
    def put(self, x, at):
        self.rows.index_put_((at,), x)
        self.count += 1
        return self.rows.sum(0)
    def read(self, x):
        return self.rows[1:3] + x
    def reset(self):
        self.total.copy_(self.table)
        return self.total.sum()
    def counted(self, x):
        self.count += 1
        return self.count * x
"""
METHODS = """
methods:
  add: {module: ".", call: add, target: cpu, inputs: {x: [3]}}
  scaled: {module: ".", call: scaled, target: cpu, inputs: {x: [3]}}
  put:
    module: "."
    call: put
    target: plain
    inputs: {x: [1, 3], at: {shape: [1], dtype: int64, range: 0..3}}
  read: {module: ".", call: read, target: cpu, inputs: {x: [3]}}
  reset: {module: ".", call: reset, target: plain, inputs: {}}
  counted: {module: ".", call: counted, target: plain, inputs: {x: [3]}}
"""
STATE = "state: {shared: [total, ro*], private: [count]}\n"


def touched(**methods: str) -> dict[str, Touched]:
    """`add="total! rows"`: the method changes `total` and reads `rows`."""
    return {
        name: Touched(
            frozenset(b[:-1] for b in text.split() if b.endswith("!")),
            frozenset(b for b in text.split() if not b.endswith("!")),
        )
        for name, text in methods.items()
    }


def decided(project: Any, state: str, methods: dict[str, Touched]) -> State:
    project.model(MODEL).spec(METHODS + state)
    return decide(project.checked, methods)


def test_shared_buffers_go_to_all_who_touch_them_and_readers_are_marked(project: Any) -> None:
    state = decided(
        project, "state: {shared: ['t*']}", touched(add="total!", scaled="total", read="rows")
    )
    assert dict(state.shared) == {"total": ("add", "scaled")}
    assert state.marks == {"add": set(), "scaled": {"total"}, "read": set()}
    assert not state.private


def test_private_buffers_go_to_each_who_changes_them(project: Any) -> None:
    state = decided(
        project, "state: {private: [total]}", touched(a="total!", b="total!", scaled="total")
    )
    assert dict(state.private) == {"total": ("a", "b")}
    assert not state.shared and not state.marks["scaled"]


def test_what_nobody_changes_is_no_state(project: Any) -> None:
    state = decided(project, "", touched(a="table", b="table rows"))
    assert state == State({}, {}, {"a": frozenset(), "b": frozenset()})


def test_a_buffer_of_one_method_needs_no_mention(project: Any) -> None:
    assert decided(project, "", touched(a="total!")).private == {"total": ("a",)}


@pytest.mark.parametrize(
    ("state", "methods", "says"),
    [
        (
            "",
            touched(add="total!", scaled="total"),
            "buffer 'total' is changed by method 'add' and read by method 'scaled'; list it under "
            "`state: {shared: [total]}`",
        ),
        (
            "",
            touched(scaled="total", add="total!"),
            "is changed by method 'add' and read by method 'scaled'",
        ),
        (
            "",
            touched(add="total!", reset="total!"),
            "is changed by method 'add' and changed by method 'reset'",
        ),
        (
            "state: {shared: [totl]}",
            touched(add="total!"),
            "no method changes a buffer called 'totl'; did you mean 'total'?",
        ),
        (
            "state: {shared: [table]}",
            touched(add="total!", scaled="table"),
            "state.shared[0]: no method changes a buffer called 'table'",
        ),
        ("state: {private: ['x*']}", touched(a="table"), "buffer called 'x*'\n"),
        (
            "state: {shared: ['t*'], private: ['*l']}",
            touched(add="total!", scaled="total"),
            "buffer 'total' is listed both as shared and as private",
        ),
    ],
)
def test_what_the_spec_leaves_open_or_gets_wrong_is_refused(
    project: Any, state: str, methods: dict[str, Touched], says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        decided(project, state, methods)
    assert says in str(caught.value)
    assert str(project.path) in str(caught.value)


def test_a_method_that_does_not_use_a_buffer_needs_no_word_on_it(project: Any) -> None:
    project.model(MODEL).spec(
        "methods:\n  add: {module: '.', call: add, target: plain, inputs: {x: [3]}}\n"
        "  f: {module: '.', target: plain, inputs: {x: [3]}}\n"
    )
    report = project.build()
    assert [(s.name, s.methods) for s in report.link.state if s.name == "total"] == [
        ("total", ("add",))
    ]


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory, build_cache: Any) -> tuple[Program, Any]:
    """A program of methods that share `total` and `rows`, and its model."""
    from .projects import Project

    project = Project(tmp_path_factory.mktemp("stateful"), build_cache)
    project.model(MODEL).spec(METHODS + STATE)
    return project.program(), project


def eager(project: Any) -> tuple[Any, Any]:
    """The model twice: `count` is private, so each of its two users has one of its own."""
    return project.load_model(), project.load_model()


def step(model: Any, other: Any, method: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        owner = other if method == "counted" else model
        return getattr(owner, method)(*(i.clone() for i in inputs)).clone()  # type: ignore[no-any-return]


def inputs_of(method: str, number: int) -> tuple[torch.Tensor, ...]:
    if method == "reset":
        return ()
    if method == "put":
        return torch.full((1, 3), float(number)), torch.tensor([number % 4])
    return (torch.arange(3.0) + number,)


NAMES = ["add", "scaled", "put", "read", "reset", "counted"]


@pytest.mark.parametrize("first", NAMES)
def test_every_method_may_come_first(stateful: tuple[Program, Any], first: str) -> None:
    program, project = stateful
    program.reset()
    pair = eager(project)
    for method in [first, *NAMES]:
        given_ = inputs_of(method, 2)
        (got,) = program.run_method(method, *given_)
        torch.testing.assert_close(got, step(*pair, method, given_))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5)), max_size=12))
def test_any_sequence_of_calls_is_what_eager_makes_of_it(
    stateful: tuple[Program, Any], calls: list[tuple[str, int]]
) -> None:
    program, project = stateful
    program.reset()
    pair = eager(project)
    for method, number in calls:
        given_ = inputs_of(method, number)
        (got,) = program.run_method(method, *given_)
        torch.testing.assert_close(got, step(*pair, method, given_))


def test_the_stock_runtime_shares_the_same_buffers(
    stateful: tuple[Program, Any], stock: Any
) -> None:
    program, project = stateful
    loaded = stock(program.path)
    methods = {name: loaded.load_method(name) for name in NAMES}
    pair = eager(project)
    for number, method in enumerate(itertools.islice(itertools.cycle(NAMES), 15)):
        given_ = inputs_of(method, number)
        torch.testing.assert_close(
            methods[method].execute(list(given_))[0], step(*pair, method, given_)
        )


def test_two_loads_of_a_program_do_not_share(stateful: tuple[Program, Any]) -> None:
    one, two = load(stateful[0].path), load(stateful[0].path)
    one.run_method("add", torch.ones(3))
    assert two.run_method("scaled", torch.ones(3))[0].tolist() == [7.0, 1.0, 1.0]


def test_a_buffer_that_a_wrapper_owns_is_its_methods_own(project: Any) -> None:
    project.model(
        MODEL
        + """
class Summed(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.register_buffer("sum", torch.full((3,), 2.0))
    def forward(self, x):
        self.sum += x
        return self.sum * 1
"""
    )
    method = "{module: '.', wrapper: 'model.py:Summed', target: plain, inputs: {x: [3]}}"
    program = project.spec(f"methods:\n  one: {method}\n  two: {method}\n").program()
    x = torch.ones(3)
    outs = [program.run_method(name, x)[0][0].item() for name in ("one", "two", "one", "one")]
    assert outs == [3.0, 3.0, 4.0, 5.0]
    assert {s.name for s in program.manifest.state if "sum" in s.name} == {"one:sum", "two:sum"}


def test_a_shared_pattern_must_make_two_methods_meet(project: Any) -> None:
    """Two wrappers, each with a buffer of its own: the same name, and not the same memory."""
    project.model("class Model(nn.Module):\n    def forward(self, x): return x\n")
    project.file(
        "wrap.py",
        """
        import torch
        from torch import nn
        class Keep(nn.Module):
            def __init__(self, module):
                super().__init__()
                self.register_buffer("kept", torch.zeros(3))
            def forward(self, x):
                self.kept.add_(x)
                return self.kept * 1
        """,
    )
    method = '{module: ".", wrapper: "wrap.py:Keep", target: plain, inputs: {x: [3]}}'
    project.spec(f'methods:\n  a: {method}\n  b: {method}\nstate: {{shared: ["*kept"]}}\n')
    with pytest.raises(ModelError, match=r"no two methods reach one buffer of '\*kept'"):
        project.build()
