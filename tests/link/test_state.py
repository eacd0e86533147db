"""State of linked programs. The oracle is eager PyTorch on modules that share, or do not share,
their buffers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mmpack.multimethod.errors import LinkError
from mmpack.multimethod.link import Manifest, MethodRecord, foreign_signature, link, open_program
from mmpack.multimethod.scale import Scale

from .conftest import Pte, Stock
from .eager import equal_to_eager, sharing
from .programs import Bump, Cache, Gather, Peek, Put

OpenStock = Callable[[Path], Stock]


def three() -> dict[str, Cache]:
    return {"put": Put(), "bump": Bump(), "peek": Peek()}


def test_shared_by_three_objects(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    report = link(
        [pte("put"), pte("bump"), pte("peek")], tmp_path / "x.pte", shared=["cache", "other"]
    )
    equal_to_eager(stock(tmp_path / "x.pte"), sharing(three(), "cache", "other"))
    cache, other = report.state
    assert (cache.name, cache.dtype, cache.shape) == ("cache", "float32", (4, 8))
    assert cache.shared and cache.methods == ("put", "bump", "peek") and cache.initial == "zero"
    assert other.shared and other.methods == ("put", "peek")
    with open_program(tmp_path / "x.pte") as file:
        assert {plan.non_const_buffer_sizes[2] for plan in file.plans} == {128 + 16}  # type: ignore[index]


def test_private_in_all(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    report = link([pte("put"), pte("bump"), pte("peek")], tmp_path / "x.pte", private=["*"])
    equal_to_eager(stock(tmp_path / "x.pte"), three())
    assert len(report.state) == 5 and not any(state.shared for state in report.state)


def test_one_shared_one_private(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    link(
        [pte("put"), pte("bump"), pte("peek")],
        tmp_path / "x.pte",
        shared=["c*e"],
        private=["other"],
    )
    equal_to_eager(stock(tmp_path / "x.pte"), sharing(three(), "cache"))


def test_never_guessed(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("put"), pte("bump")], tmp_path / "x.pte")
    assert str(error.value) == (
        f"buffer 'cache' is in method 'put' of {pte('put')} and in method 'bump' of "
        f"{pte('bump')}: say whether it is shared or private: --share 'cache' makes it one memory, "
        "--private 'cache' keeps the files apart"
    )


def test_a_buffer_of_one_method_needs_no_declaration(
    pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    link([pte("put"), pte("mlp")], tmp_path / "x.pte")
    equal_to_eager(stock(tmp_path / "x.pte"), {"put": Put()}, ["put"] * 3)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            "wide_put",
            "buffer 'cache' is shared, but its shapes are not the same: "
            "[4, 8] in method 'put', [4, 9] in method 'wide_put'",
        ),
    ],
)
def test_disagreement(other: str, said: str, pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("put"), pte(other)], tmp_path / "x.pte", shared=["cache"], private=["other"])
    assert str(error.value) == said


def test_initial_data_must_agree(pte: Pte, tmp_path: Path) -> None:
    rename = {"counter_8.pte:forward": "other"}
    files = [pte("counter"), pte("counter_8")]
    with pytest.raises(LinkError, match="shared, but its initial data are not the same: values"):
        link(files, tmp_path / "x.pte", rename=rename, shared=["count"])


def test_initial_data_are_carried_over(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    report = link(
        [pte("put"), pte("counter"), pte("counter_8")],
        tmp_path / "x.pte",
        rename={"counter.pte:forward": "seven", "counter_8.pte:forward": "eight"},
        private=["count"],
    )
    program = stock(tmp_path / "x.pte")
    one = [torch.ones(1)]
    for step in range(1, 4):
        assert torch.equal(program.run("seven", one)[0], torch.full((4,), 7.0 + step))
        assert torch.equal(program.run("eight", one)[0], torch.full((4,), 8.0 + step))
        program.run("put", one)
    assert {s.name: s.initial for s in report.state}["count"] == "data"


def test_shared_initial_data(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    (tmp_path / "copy.pte").write_bytes(pte("counter").read_bytes())
    link(
        [pte("counter"), tmp_path / "copy.pte"],
        tmp_path / "x.pte",
        rename={"copy.pte:forward": "again"},
        shared=["count"],
    )
    program = stock(tmp_path / "x.pte")
    for name in program.names:  # loading copies the initial data
        program.program.load_method(name)
    one = [torch.ones(1)]
    assert float(program.run("forward", one)[0][0]) == 8
    assert float(program.run("again", one)[0][0]) == 9


def quantized(name: str, path: Path, *scales: Scale) -> Path:
    """A program whose manifest says that its method quantizes the buffer `cache` so."""
    with open_program(path) as file:
        signature = foreign_signature(file, name)
    record = MethodRecord(signature, scales=(("state", "cache", scales),) if scales else ())
    copy = path.parent / f"quantized_{name}.pte"
    link([path], copy, manifest=Manifest({name: record}))
    return copy


def test_methods_that_share_a_buffer_have_one_scale(pte: Pte, tmp_path: Path) -> None:
    one, other = Scale(0.5, 3, -128, 127, "int8"), Scale(0.25, 7, -128, 127, "int8")
    for name in ("put", "bump", "peek"):
        (tmp_path / f"{name}.pte").write_bytes(pte(name).read_bytes())
    put = quantized("put", tmp_path / "put.pte", one)
    said: dict[str, list[str]] = {"shared": ["cache"], "private": ["other"]}
    floats = quantized("peek", tmp_path / "peek.pte")
    alike = quantized("bump", tmp_path / "bump.pte", one)
    assert link([put, floats, alike, pte("wide_put")], tmp_path / "x.pte", private=["*"]).state
    assert len(link([put, floats, alike], tmp_path / "x.pte", **said).state[0].methods) == 3  # type: ignore[arg-type]
    differs = quantized("bump", tmp_path / "bump.pte", other)
    link([put, floats, differs], tmp_path / "x.pte", private=["*"])
    written = (tmp_path / "x.pte").read_bytes()
    with pytest.raises(LinkError) as error:
        link([put, floats, differs], tmp_path / "x.pte", rename={"bump": "add"}, **said)  # type: ignore[arg-type]
    assert str(error.value) == (
        "buffer 'cache' is shared, but its scales are not the same: int8 scale 0.5 zero point 3 in "
        "method 'put', int8 scale 0.25 zero point 7 in method 'add'; build both from one spec, "
        "which gives them one scale"
    )
    assert (tmp_path / "x.pte").read_bytes() == written


def test_patterns_that_match_nothing(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("put")], tmp_path / "x.pte", shared=["cach"])
    assert str(error.value) == ("state 'cach': no method has such a buffer; did you mean 'cache'?")
    with pytest.raises(LinkError, match="no method has a named buffer"):
        link([pte("mlp")], tmp_path / "x.pte", shared=["cache"])


def test_shared_and_private_at_once(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"'cache' is declared shared \('c\*'\) and private"):
        link([pte("put")], tmp_path / "x.pte", shared=["c*"], private=["cache", "other"])


def renamed_copy(pte: Pte, name: str, folder: Path) -> tuple[Path, dict[str, str]]:
    copy = folder / "copy.pte"
    copy.write_bytes(pte(name).read_bytes())
    return copy, {"copy.pte:put": "put_2", "copy.pte:bump": "bump_2"}


@pytest.mark.parametrize("name", ["put_bump", "put_bump_unnamed"])
def test_what_a_file_shares_stays_shared_in_it(
    name: str, pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    """Two copies of a file whose two methods share a cache: two caches."""
    copy, rename = renamed_copy(pte, name, tmp_path)
    private = ["*"] if name == "put_bump" else []
    report = link([pte(name), copy], tmp_path / "x.pte", rename=rename, private=private)
    one = sharing({"put": Put(), "bump": Bump()}, "cache")
    two = sharing({"put_2": Put(), "bump_2": Bump()}, "cache")
    order = ("put", "put_2", "bump", "bump", "bump_2", "put_2", "bump", "bump_2")
    equal_to_eager(stock(tmp_path / "x.pte"), {**one, **two}, order)
    assert any(state.shared for state in report.state)


def test_files_may_share_more(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    copy, rename = renamed_copy(pte, "put_bump", tmp_path)
    link([pte("put_bump"), copy], tmp_path / "x.pte", rename=rename, shared=["cache", "other"])
    models = {"put": Put(), "bump": Bump(), "put_2": Put(), "bump_2": Bump()}
    order = ("put", "put_2", "bump", "bump_2", "put", "bump_2")
    equal_to_eager(stock(tmp_path / "x.pte"), sharing(models, "cache"), order)


def test_memory_without_names_cannot_be_declared(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="no method has a named buffer"):
        link([pte("put_bump_unnamed")], tmp_path / "x.pte", shared=["cache"])


@pytest.mark.parametrize("bump", ["bump_in_work", "bump_in_work_named"])
def test_state_among_activations_is_moved_away(
    bump: str, pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    """ExecuTorch's default: state in the memory that all methods use for activations. Each file
    alone keeps its state; linked naively, each would scramble the other's."""
    report = link([pte("put_in_work"), pte(bump), pte("mlp")], tmp_path / "x.pte")
    models: dict[str, nn.Module] = {"put": Put(), "bump": Bump()}
    equal_to_eager(stock(tmp_path / "x.pte"), models, ("put", "bump", "bump", "put", "bump"))
    assert {method for state in report.state for method in state.methods} == {"put", "bump"}
    assert not any(state.shared for state in report.state)


def test_state_that_a_delegate_reads_is_moved_away(
    pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    link([pte("gather"), pte("mlp"), pte("bump_in_work")], tmp_path / "x.pte")
    models: dict[str, nn.Module] = {"gather": Gather(), "bump": Bump()}
    order = ("gather", "bump", "gather", "bump", "gather")
    equal_to_eager(stock(tmp_path / "x.pte"), models, order)


def test_programs_without_state_get_no_third_memory(pte: Pte, tmp_path: Path) -> None:
    report = link([pte("mlp"), pte("cat")], tmp_path / "x.pte", rename={"cat.pte:forward": "cat"})
    assert report.state == ()
    with open_program(tmp_path / "x.pte") as file:
        assert all(len(plan.non_const_buffer_sizes or ()) == 2 for plan in file.plans)


def test_named_state_among_activations_is_not_guessed_either(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"buffer 'cache' is in method 'put' of .* and in"):
        link([pte("put"), pte("bump_in_work_named")], tmp_path / "x.pte")


def test_state_among_activations_may_be_shared(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    files = [pte("put"), pte("bump_in_work_named")]
    link(files, tmp_path / "x.pte", shared=["cache"])
    models = sharing({"put": Put(), "bump": Bump()}, "cache")
    equal_to_eager(stock(tmp_path / "x.pte"), models, ("put", "bump", "bump", "put", "bump"))


@pytest.mark.parametrize("first", [["put", "bump"], ["put_in_work", "bump_in_work"]])
def test_a_linked_program_may_be_linked_again(
    first: list[str], pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    named = first[0] == "put"
    said: dict[str, list[str]] = {"shared": ["cache"]} if named else {}
    link([pte(name) for name in first], tmp_path / "a.pte", **said)  # type: ignore[arg-type]
    link([tmp_path / "a.pte", pte("peek")], tmp_path / "x.pte", private=["*"])
    models = three()
    if named:
        sharing({name: models[name] for name in ("put", "bump")}, "cache")
    equal_to_eager(stock(tmp_path / "x.pte"), models)
