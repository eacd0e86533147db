"""What is state in a program, whether it says so or not; and programs that are linked again. The
oracle is eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link import link, open_program
from mmpack.multimethod.link.schema import Tensor
from mmpack.multimethod.link.write import Piece, Segment, write_pte

from .conftest import Pte, Stock, same
from .eager import equal_to_eager, sharing
from .programs import ROW, Bump, Cache, Gather, Peek, Put, Roll, Row, Tick

OpenStock = Callable[[Path], Stock]

STATELESS = ("mlp", "cat", "branch", "loop", "many_outputs", "patched")


@pytest.mark.parametrize(
    "name", [*STATELESS, "xnnpack", *(f"{name}_xnnpack" for name in STATELESS[3:])]
)
def test_what_is_computed_is_no_state(name: str, pte: Pte, tmp_path: Path) -> None:
    """The modules have no buffers."""
    report = link([pte(name)], tmp_path / "x.pte")
    assert report.state == () and report.manifest.state == ()
    with open_program(tmp_path / "x.pte") as file:
        assert all(len(plan.non_const_buffer_sizes or ()) == 2 for plan in file.plans)


@pytest.mark.parametrize(
    ("name", "method", "model"),
    [
        ("put_in_work", "put", Put),
        ("bump_in_work", "bump", Bump),
        ("gather", "gather", Gather),
        ("roll_in_work", "roll", Roll),
        ("row_in_work", "row", Row),
        ("row_in_place", "row", Row),
        ("tick_in_work", "tick", Tick),
        ("tick_xnnpack", "tick", Tick),
    ],
)
def test_state_that_a_program_does_not_tell(
    name: str, method: str, model: type[Cache], pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    """It is the buffers that the module changes, nothing more and nothing less, and other
    methods' activations leave it alone."""
    report = link([pte("mlp"), pte(name)], tmp_path / "x.pte")
    eager, program = model().eval(), stock(tmp_path / "x.pte")
    changed = [[4, 8], [3]] if model is Put else [[4, 8]]
    assert [list(state.shape) for state in report.state] == changed
    assert {state.methods for state in report.state} == {(method,)}
    for step in range(3):
        inputs = () if model is Tick else (torch.tensor([1.0 + step]),)
        with torch.no_grad():
            expected = eager(*inputs)
        torch.testing.assert_close(program.run(method, inputs)[0], expected)
        program.run("forward", ROW)


def test_a_program_of_mmpack_s_own_has_no_other_state_than_it_names(
    pte: Pte, tmp_path: Path
) -> None:
    """A delegate's output, copied back into a buffer, is not a buffer itself."""
    report = link([pte("roll"), pte("row")], tmp_path / "x.pte", shared=["cache"])
    assert [state.name for state in report.state] == ["cache"]
    again = link([tmp_path / "x.pte"], tmp_path / "y.pte")
    assert again.state == report.state


@pytest.mark.parametrize("shared", [True, False])
def test_a_linked_program_beside_itself(
    shared: bool, pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    """Named state and state without a name, from several files, is one memory by then."""
    link([pte("roll"), pte("row"), pte("gather")], tmp_path / "a.pte", shared=["cache"])
    (tmp_path / "b.pte").write_bytes((tmp_path / "a.pte").read_bytes())
    link(
        [tmp_path / "a.pte", tmp_path / "b.pte"],
        tmp_path / "x.pte",
        rename={f"b.pte:{name}": f"{name}_2" for name in ("roll", "row", "gather")},
        shared=["cache"] if shared else (),
        private=() if shared else ["cache"],
    )
    one: dict[str, Cache] = {"roll": Roll(), "row": Row()}
    two: dict[str, Cache] = {"roll_2": Roll(), "row_2": Row()}
    apart = {"gather": Gather(), "gather_2": Gather()}
    if shared:
        models = {**sharing({**one, **two}, "cache"), **apart}
    else:
        models = {**sharing(one, "cache"), **sharing(two, "cache"), **apart}
    equal_to_eager(stock(tmp_path / "x.pte"), models, [*models, *reversed(models), *models])


def test_a_linked_program_shares_with_another(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    link([pte("roll"), pte("gather")], tmp_path / "a.pte")
    link([tmp_path / "a.pte", pte("row")], tmp_path / "x.pte", shared=["cache"])
    models = {**sharing({"roll": Roll(), "row": Row()}, "cache"), "gather": Gather()}
    equal_to_eager(stock(tmp_path / "x.pte"), models, [*models, *reversed(models), *models])


def rewritten(path: Path, output: Path, change: Callable[[Tensor], None]) -> Path:
    """A copy of a program, with its planned tensors changed."""
    with open_program(path) as file:
        for plan in file.plans:
            for value in plan.values or ():
                if isinstance(value.val, Tensor) and value.val.allocation_info is not None:
                    change(value.val)
            used, empty = (plan.non_const_buffer_sizes or ())[1:], (0, 0)
            plan.non_const_buffer_sizes = (0, *(max(used),) * 2) if used else empty
        segments = [Segment.of(Piece((file, extent))) for extent in file.segments]
        write_pte(output, file.program, segments, sealed=False)
    return output


def test_activations_in_memory_2_are_kept_apart_and_are_no_state(
    pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    """As a planner might do that knows of a faster memory. In the Python runtime all methods of a
    program have one memory 2."""

    def move(tensor: Tensor) -> None:
        assert tensor.allocation_info is not None
        tensor.allocation_info.memory_id = 2

    moved = rewritten(pte("mlp"), tmp_path / "moved.pte", move)
    report = link([pte("put"), moved, pte("peek")], tmp_path / "x.pte", shared=["*"])
    assert [state.name for state in report.state] == ["cache", "other"]
    program = stock(tmp_path / "x.pte")
    models = sharing({"put": Put(), "peek": Peek()}, "cache", "other")
    for method in ("put", "peek"):
        equal_to_eager(program, models, [method])
        assert same(program.run("forward", ROW), stock(pte("mlp")).run("forward", ROW))


def test_buffers_of_one_file_that_overlap_move_as_one(
    pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    def call_it_otherwise(tensor: Tensor) -> None:
        extra = tensor.extra_tensor_info
        if extra and extra.fully_qualified_name == "cache" and not names:
            extra.fully_qualified_name = "alias"
            names.append("cache")

    names: list[str] = []
    aliased = rewritten(pte("put_bump"), tmp_path / "aliased.pte", call_it_otherwise)
    with pytest.raises(LinkError) as error:
        link([aliased, pte("peek")], tmp_path / "x.pte", shared=["*"])
    assert f"of {aliased} lies over others, or inside of a larger one" in str(error.value)
    link([pte("peek"), aliased], tmp_path / "x.pte", private=["*"])
    models = {**sharing({"put": Put(), "bump": Bump()}, "cache"), "peek": Peek()}
    equal_to_eager(stock(tmp_path / "x.pte"), models)
