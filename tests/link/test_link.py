"""Linked programs compute what their inputs computed, bit for bit, and store what is equal once."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from torch.export import export

from mmpack.multimethod.errors import FormatError, LinkError
from mmpack.multimethod.link import PteFile, link, open_program, sizes
from mmpack.multimethod.link.extents import constant_extent, constant_sizes
from mmpack.multimethod.link.schema import (
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    Buffer,
    DataLocation,
)
from mmpack.multimethod.link.write import Piece, Segment, write_pte

from .conftest import Pte, Stock, same
from .programs import CONSTANTS, INPUTS, ROW, Mlp, Twice

OpenStock = Callable[[Path], Stock]

GROUPS = {
    "portable": ["mlp", "twice"],
    "shared weights": ["xnnpack", "xnnpack_twice"],
    "both": ["mlp", "xnnpack", "xnnpack_twice"],
    "all kinds": ["dynamic", "branch", "cat", "xnnpack_twice", "counter", "put"],
    "one": ["xnnpack_dynamic"],
}


def linked(
    names: list[str], pte: Pte, output: Path, **options: object
) -> dict[str, tuple[str, str]]:
    """Links programs, methods named after their program; new name -> (program, old name)."""
    rename, where = {}, {}
    for name in names:
        for method in INPUTS[name]:
            rename[f"{name}.pte:{method}"] = f"{name}_{method}"
            where[f"{name}_{method}"] = (name, method)
    link([pte(name) for name in names], output, rename=rename, **options)  # type: ignore[arg-type]
    return where


@pytest.mark.parametrize("group", GROUPS)
def test_bit_for_bit(group: str, pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    where = linked(GROUPS[group], pte, tmp_path / "x.pte")
    program = stock(tmp_path / "x.pte")
    assert program.names == set(where)
    for method, (name, old) in where.items():
        inputs = INPUTS[name][old]
        assert same(program.run(method, inputs), stock(pte(name)).run(old, inputs)), method


def test_linked_again_it_is_the_same_file(pte: Pte, tmp_path: Path) -> None:
    names = ["mlp", "xnnpack", "put"]
    linked(names, pte, tmp_path / "a.pte")
    linked(names, pte, tmp_path / "b.pte")
    assert (tmp_path / "a.pte").read_bytes() == (tmp_path / "b.pte").read_bytes()


def test_executorch_can_read_it(pte: Pte, tmp_path: Path) -> None:
    linked(["mlp", "xnnpack", "counter"], pte, tmp_path / "x.pte")
    file = deserialize_pte_binary((tmp_path / "x.pte").read_bytes())
    assert [plan.name for plan in file.program.execution_plan][:2] == [
        "mlp_forward",
        "xnnpack_mlp",
    ]
    assert file.mutable_data is not None and file.named_data is not None


def test_segments_are_aligned_and_sorted(pte: Pte, tmp_path: Path) -> None:
    linked(["mlp", "xnnpack", "counter"], pte, tmp_path / "x.pte")
    with open_program(tmp_path / "x.pte") as file:
        offsets = [segment.offset for segment in file.segments]
        assert offsets == sorted(offsets) and not any(offset % 128 for offset in offsets)


def test_wider_alignment_is_kept(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    """What ExecuTorch was asked for, for constants and for segments, also where another file has
    the same bytes and did not ask."""
    programs = {"forward": export(Mlp().eval(), ROW)}
    lowered = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()])
    config = ExecutorchBackendConfig(segment_alignment=4096, constant_tensor_alignment=64)
    (tmp_path / "wide.pte").write_bytes(bytes(lowered.to_executorch(config).buffer))
    portable = to_edge(export(Mlp(seed=3, width=9).eval(), (torch.ones(2, 9),)))
    (tmp_path / "plain.pte").write_bytes(bytes(portable.to_executorch(config).buffer))
    files = [pte("xnnpack"), pte("twice"), tmp_path / "wide.pte", tmp_path / "plain.pte"]
    rename = {"twice.pte:twice": "portable", "plain.pte:forward": "plain"}
    link(files, tmp_path / "x.pte", rename=rename)
    with open_program(tmp_path / "wide.pte") as wide, open_program(tmp_path / "x.pte") as file:
        keys = wide.named.keys()
        assert keys and not any(file.segments[file.named[key]].offset % 4096 for key in keys)
        (plan,) = (plan for plan in file.plans if plan.name == "plain")
        used = constant_sizes([plan])
        assert len(used) == 4
        assert not any(constant_extent(file, *one).offset % 64 for one in used.items())
    program = stock(tmp_path / "x.pte")
    assert same(program.run("forward", ROW), stock(tmp_path / "wide.pte").run("forward", ROW))


def test_equal_weights_are_stored_once(pte: Pte, tmp_path: Path) -> None:
    """The two XNNPACK programs have the same four weights, and so has the portable one."""
    report = link([pte("xnnpack"), pte("xnnpack_twice"), pte("mlp")], tmp_path / "x.pte")
    weights = sum(p.nbytes for p in Mlp().parameters())
    data = (tmp_path / "x.pte").read_bytes()
    for parameter in Mlp().parameters():
        assert data.count(parameter.detach().numpy().tobytes()) == 1
    assert report.saved >= 2 * weights
    assert report.given - report.saved == report.stored
    assert report.size == len(data)
    with open_program(tmp_path / "x.pte") as file:
        assert sizes(file).stored == report.stored
        # Every method reaches all weights. The names of the equal ones are still both there.
        assert all(size.total >= weights for size in sizes(file).methods.values())
        assert sizes(file).shared >= 3 * weights
        assert len(file.named) == 4 + len(["manifest", "crc32"])


def test_equal_delegates_are_stored_once(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    (tmp_path / "copy.pte").write_bytes(pte("xnnpack").read_bytes())
    report = link(
        [pte("xnnpack"), tmp_path / "copy.pte"],
        tmp_path / "x.pte",
        rename={"copy.pte:mlp": "mlp_2", "copy.pte:twice": "twice_2"},
    )
    assert report.given == 2 * report.stored
    program = stock(tmp_path / "x.pte")
    assert same(program.run("mlp", ROW), program.run("mlp_2", ROW))


def test_constants_as_executorch_makes_them(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    link([pte("mlp")], tmp_path / "x.pte", constants=CONSTANTS)
    program, theirs = stock(tmp_path / "x.pte"), stock(pte("constants"))
    with PteFile.open(tmp_path / "x.pte") as ours, PteFile.open(pte("constants")) as file:
        assert sorted(ours.plans[1:], key=lambda p: p.name or "") == file.plans[1:]
    for name, value in CONSTANTS.items():
        assert same(program.run(name), theirs.run(name))
        assert same(program.run(name), [value])


@pytest.mark.parametrize("value", [2**63, None, [1], "a\0b"])
def test_values_that_no_method_can_return(value: object, pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="constant 'n'"):
        link([pte("mlp")], tmp_path / "x.pte", constants={"n": value})  # type: ignore[dict-item]
    assert not (tmp_path / "x.pte").exists()


def test_weights_inside_the_flatbuffer_move_to_segments(
    pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    """Files of years ago: constants and delegates in the flatbuffer. ExecuTorch's wheel does not
    load them any more, but it loads what they are linked to."""
    old = tmp_path / "old.pte"
    with PteFile.open(pte("xnnpack_twice")) as file:
        program = file.program
        program.constant_buffer = [Buffer(b"")]
        used = constant_sizes(file.plans)
        for index in range(
            1, len((program.constant_segment.offsets if program.constant_segment else None) or ())
        ):
            extent = constant_extent(file, index, used[index])
            program.constant_buffer.append(Buffer(file.read(extent.offset, extent.size)))
        program.constant_segment = None
        program.backend_delegate_data = []
        for delegate in file.plans[0].delegates or ():
            assert delegate.processed is not None
            data = file.segment_bytes(delegate.processed.index)
            delegate.processed = BackendDelegateDataReference(
                DataLocation.INLINE, len(program.backend_delegate_data)
            )
            program.backend_delegate_data.append(BackendDelegateInlineData(data))
        write_pte(
            old,
            program,
            [Segment.of(Piece((file, extent))) for extent in file.segments],
            sealed=False,
        )
    expected = stock(pte("xnnpack_twice")).run("again", ROW)
    link([old], tmp_path / "x.pte")
    with open_program(tmp_path / "x.pte") as file:
        assert not file.program.constant_buffer and not file.program.backend_delegate_data
    assert same(stock(tmp_path / "x.pte").run("again", ROW), expected)


def test_only_equal_bytes_are_shared(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    where = linked(["mlp", "other_mlp"], pte, tmp_path / "x.pte")
    program = stock(tmp_path / "x.pte")
    for method, (name, old) in where.items():
        assert same(program.run(method, ROW), stock(pte(name)).run(old, ROW))
    outputs = [program.run(method, ROW)[0] for method in where]
    assert not torch.equal(*outputs)


def message(error: pytest.ExceptionInfo[Exception], *paths: Path) -> str:
    text = str(error.value)
    for path in paths:
        text = text.replace(str(path.parent), "…")
    return text


def test_two_methods_of_one_name(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("mlp"), pte("dynamic")], tmp_path / "x.pte")
    assert message(error, pte("mlp")) == (
        "two methods are called 'forward', in …/mlp.pte and in …/dynamic.pte; "
        "rename one: --rename dynamic.pte:forward=dynamic_forward"
    )


def suggested(error: pytest.ExceptionInfo[Exception]) -> dict[str, str]:
    """The renames that a message proposes, as a shell would take them."""
    lines = [line.partition(" --rename ")[2] for line in str(error.value).splitlines()]
    pairs = [shlex.split(line)[0].rpartition("=") for line in lines if line]
    return {old: new for old, _, new in pairs}


def test_all_clashes_of_names_are_told_with_what_solves_them(
    pte: Pte, stock: OpenStock, tmp_path: Path
) -> None:
    files = [pte("xnnpack"), pte("twice")]
    for name in ("one/a b.pte", "two/a b.pte"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(pte("xnnpack").read_bytes())
        files.append(tmp_path / name)
    with pytest.raises(LinkError) as error:
        link(files, tmp_path / "x.pte", rename={"nothing": "x"}, constants={"twice": 1})
    lines = str(error.value).splitlines()
    assert sum(line.startswith("two methods are called 'mlp'") for line in lines) == 2
    assert sum(line.startswith("two methods are called 'twice'") for line in lines) == 3
    assert sum("constant 'twice' has the name of a method" in line for line in lines) == 1
    assert sum("cannot rename 'nothing'" in line for line in lines) == 1 and len(lines) == 7
    renames = suggested(error)
    assert set(renames) == {
        "twice.pte:twice",
        *(f"{folder}/a b.pte:{name}" for folder in ("one", "two") for name in ("mlp", "twice")),
    }
    link(files, tmp_path / "x.pte", rename=renames)
    program = stock(tmp_path / "x.pte")
    assert program.names == {"mlp", "twice", *renames.values()}
    assert same(program.run(renames["two/a b.pte:mlp"], ROW), program.run("mlp", ROW))


def test_a_file_that_is_given_twice(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("mlp"), pte("mlp")], tmp_path / "x.pte")
    assert str(error.value) == f"{pte('mlp')}: is given 2 times"


@pytest.mark.parametrize("new", ["", "a b", "a/b", "{i}", "a\n"])
def test_a_name_that_no_spec_could_give(pte: Pte, tmp_path: Path, new: str) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("mlp")], tmp_path / "x.pte", rename={"forward": new})
    assert str(error.value) == (
        f"{pte('mlp')}: method 'forward' cannot be renamed: expected a name without spaces, "
        f"slashes and braces, got {new!r}"
    )


def test_the_rename_of_one_file_goes_before_that_of_all(pte: Pte, tmp_path: Path) -> None:
    files = [pte("mlp"), pte("dynamic")]
    link(files, tmp_path / "x.pte", rename={"forward": "all", "dynamic.pte:forward": "one"})
    with open_program(tmp_path / "x.pte") as file:
        assert file.methods == ("all", "one")


def test_renaming_nothing(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError) as error:
        link([pte("mlp")], tmp_path / "x.pte", rename={"forwrd": "x"})
    assert str(error.value) == "cannot rename 'forwrd': no such method; did you mean 'forward'?"
    with pytest.raises(LinkError) as error:
        link([pte("mlp")], tmp_path / "x.pte", rename={"mpl.pte:forward": "x"})
    assert str(error.value) == (
        "cannot rename 'mpl.pte:forward': no such method; did you mean 'mlp.pte:forward'?"
    )


def test_renaming_to_a_name_that_is_taken(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="two methods are called 'twice'"):
        link([pte("xnnpack")], tmp_path / "x.pte", rename={"mlp": "twice"})


def test_a_constant_of_a_method_s_name(pte: Pte, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="constant 'forward' has the name of a method in"):
        link([pte("mlp")], tmp_path / "x.pte", constants={"forward": 1})


def test_no_inputs(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="nothing to link"):
        link([], tmp_path / "x.pte")


def test_methods_that_their_backend_finds_by_name(pte: Pte, tmp_path: Path) -> None:
    path = tmp_path / "qnn.pte"
    data = pte("xnnpack").read_bytes()
    path.write_bytes(data.replace(b"\x0e\0\0\0XnnpackBackend", b"\x0a\0\0\0QnnBackend\0\0\0\0"))
    with pytest.raises(LinkError) as error:
        link([path], tmp_path / "x.pte", rename={"mlp": "other"})
    assert message(error, path) == (
        "…/qnn.pte: method 'mlp' cannot be renamed: its QnnBackend delegate finds its graph by the "
        "method's name; lower it under the name 'other'"
    )


def test_one_key_with_two_contents(pte: Pte, tmp_path: Path) -> None:
    data = bytearray(pte("xnnpack_twice").read_bytes())
    with PteFile.open(pte("xnnpack_twice")) as file:
        key, index = next(iter(file.named.items()))
        data[file.segments[index].offset] ^= 1
    (tmp_path / "b.pte").write_bytes(data)
    with pytest.raises(LinkError) as error:
        link([pte("xnnpack"), tmp_path / "b.pte"], tmp_path / "x.pte")
    assert str(error.value) == (
        f"named data {key!r} are not the same in {pte('xnnpack')} and in {tmp_path / 'b.pte'}"
    )


def test_fields_that_would_be_lost(
    pte: Pte, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = PteFile.open

    def newer(path: Path, fd: int | None = None) -> PteFile:
        file = opened(path, fd)
        file.unknown = ("Tensor.slot 10",)
        return file

    monkeypatch.setattr(PteFile, "open", newer)
    with pytest.raises(LinkError, match=r"does not know and would lose \(Tensor\.slot 10\)"):
        link([pte("mlp")], tmp_path / "x.pte")


def test_a_file_that_is_no_program(pte: Pte, tmp_path: Path) -> None:
    (tmp_path / "b.pte").write_text("hello")
    with pytest.raises(FormatError, match=r"b\.pte: is not an ExecuTorch program"):
        link([pte("mlp"), tmp_path / "b.pte"], tmp_path / "x.pte")


def test_eager_is_the_same(pte: Pte, stock: OpenStock, tmp_path: Path) -> None:
    link([pte("mlp"), pte("xnnpack_twice")], tmp_path / "x.pte")
    program = stock(tmp_path / "x.pte")
    torch.testing.assert_close(program.run("forward", ROW)[0], Mlp()(*ROW))
    torch.testing.assert_close(program.run("again", ROW)[0], Twice()(*ROW))
