"""What the stock runtime does with our programs, and we with its: the same, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from mmpack.multimethod import ExecutionError, load
from mmpack.multimethod.runtime import methods
from mmpack.multimethod.runtime.chatter import caught

INPUTS: dict[str, list[list[torch.Tensor]]] = {
    "blend": [[torch.randn(2, 3), torch.randn(2, 3), torch.tensor([2, 0, 0, 1])]],
    "matmul": [[torch.randn(m, 4), torch.randn(4, n)] for m, n in ((1, 2), (3, 5), (8, 8))],
    "window": [[torch.randn(w, 2), torch.randn(w, 2)] for w in (4, 8, 16)],
    "add": [[torch.randn(2)] for _ in range(3)],
    "scaled": [[torch.randn(2)] for _ in range(2)],
    "get_max_rows": [[]],
    "scale": [[]],
    "title": [[]],
}


def test_every_method_gives_the_same_bits_in_the_stock_runtime(
    toy: Path, stock: Callable[[Path], Any]
) -> None:
    ours, theirs = load(toy), stock(toy)
    assert theirs.method_names == set(ours.method_names) == set(INPUTS)
    loaded = {name: theirs.load_method(name) for name in INPUTS}
    for name, calls in INPUTS.items():
        for inputs in calls:
            for mine, other in zip(
                ours.run_method(name, *inputs), loaded[name].execute(inputs), strict=True
            ):
                if isinstance(mine, torch.Tensor):
                    assert mine.dtype == other.dtype and torch.equal(mine, other)
                else:
                    assert mine == other


FOREIGN = """\
{path}:
  delegated(in_0: float32[2, 2]) -> (out_0: float32[2, 2])
  pooled(in_0: float32[1, 2, 4, 6]) -> (out_0: float32[1, 2, 2, 3])
  products(in_0: float32[in_0_0=1..8, in_0_1=1..4], in_1: float32[in_1_0=1..4, in_1_1=1..9])\
 -> (out_0: float32[out_0_0, out_0_1], out_1: float32[out_1_0, out_1_1])
  scaled(in_0: float32[3], in_1: int, in_2: float, in_3: bool) -> (out_0: float32[3])
  get_vocab_size() -> (out_0: int)"""


def test_a_foreign_program_has_signatures_derived_from_its_plans(foreign: Path) -> None:
    program = load(foreign)
    assert program.manifest is None
    assert repr(program) == FOREIGN.format(path=foreign)
    assert program.constants == {} and program.flows == {}


def test_a_foreign_program_runs(foreign: Path) -> None:
    program = load(foreign)
    a, b, x = torch.randn(3, 4), torch.randn(4, 5), torch.randn(2, 2)
    product, more = program.run_method("products", a, in_1=b)
    torch.testing.assert_close(product, a @ b)
    assert torch.equal(more, a + 1)
    assert torch.equal(program["scaled"](torch.ones(3), 2, 1, True).out_0, torch.full((3,), 3.0))
    assert torch.equal(program["delegated"](x).out_0, x + x)
    assert program.run_method("get_vocab_size").out_0 == 256


def test_a_channels_last_input_is_given_as_the_method_wants_it(foreign: Path) -> None:
    program, image = load(foreign), torch.randn(1, 2, 4, 6)
    expected = torch.nn.functional.max_pool2d(image, 2)
    for given in (image, image.to(memory_format=torch.channels_last), image):
        assert torch.equal(program.run_method("pooled", given).out_0, expected)


def test_a_failure_in_the_middle_of_a_run_names_the_method(foreign: Path) -> None:
    program = load(foreign)
    with pytest.raises(ExecutionError, match=r"products: ExecuTorch failed to run it: .*0x12"):
        program.run_method("products", torch.ones(3, 3), torch.ones(4, 5))
    with pytest.raises(ExecutionError, match=r"scaled: ExecuTorch failed to run it"):
        program.run_method("scaled", torch.ones(3), 5, 1.0, True)  # the plan has 2 written in it
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert torch.equal(program.run_method("products", a, b).out_0, a @ b)


def edited(path: Path, folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of a program with a name in it exchanged for another one of the same length."""
    assert len(old) == len(new) and old in path.read_bytes()
    copy = folder / "edited.pte"
    copy.write_bytes(path.read_bytes().replace(old, new))
    return copy


def test_a_backend_that_is_not_here_is_named_with_what_would_help(
    foreign: Path, tmp_path: Path
) -> None:
    program = load(edited(foreign, tmp_path, b"XnnpackBackend", b"MissingBackend"))
    with pytest.raises(ExecutionError) as raised:
        program.run_method("delegated", torch.ones(2, 2))
    message = str(raised.value)
    assert message.startswith("delegated: this runtime has no MissingBackend (it has: ")
    assert "XnnpackBackend" in message
    assert message.endswith("`mmpack doctor` says what would change that")
    assert torch.equal(program["scaled"](torch.ones(3), 2, 1.0, True).out_0, torch.full((3,), 3.0))


def test_a_missing_operator_is_named_as_executorch_prints_it(
    foreign: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = load(edited(foreign, tmp_path, b"aten::mm", b"aten::no"))
    with pytest.raises(ExecutionError) as raised:
        program.run_method("products", torch.ones(3, 4), torch.ones(4, 5))
    message = str(raised.value)
    assert message.startswith("products: ExecuTorch does not load it: ")
    assert "Missing operator: [0] aten::no.out" in message
    assert capfd.readouterr() == ("", "")


def test_a_method_whose_backend_is_missing_does_not_block_the_others_that_share_its_state(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = methods.read_facts

    def on_an_npu(*args: Any) -> dict[str, Any]:
        facts = real(*args)
        return {**facts, "scaled": attrs.evolve(facts["scaled"], backends=("NpuBackend",))}

    monkeypatch.setattr(methods, "read_facts", on_an_npu)
    program = load(toy)
    assert program.run_method("add", torch.ones(2)).total.tolist() == [8.0, 0.0]
    with pytest.raises(ExecutionError, match="scaled: this runtime has no NpuBackend"):
        program.run_method("scaled", torch.ones(2))
    assert program.run_method("add", torch.ones(2)).total.tolist() == [9.0, 1.0]


QUIET = """
import sys, torch
from mmpack.multimethod import load
program = load(sys.argv[1], engine=sys.argv[2])
program.run_method("window", torch.ones(16, 2), torch.ones(16, 2))
program.run_method("add", torch.ones(2))
program.reset()
program.run_method("matmul", torch.ones(8, 4), torch.ones(4, 8))
"""


def test_loading_and_running_print_nothing_from_the_first_import_on(toy: Path, engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(toy), engine], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_what_was_printed_is_given_back_and_the_terminal_after_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    os.write(1, b"before\n")
    with caught() as printed:  # as C++ prints: to the descriptors, or by way of Python
        os.write(1, b"inside\n")
        os.write(2, b"aside\n")
        print("in Python", file=sys.stderr)
        assert printed() == "inside\naside\nin Python"
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_the_terminal_comes_back_when_several_threads_load(
    toy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def load_all() -> None:
        program = load(toy)
        for name in program:
            program[name].prepare()

    threads = [threading.Thread(target=load_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"still here\n")
    assert capfd.readouterr() == ("still here\n", "")


def test_a_program_outlives_its_file(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.pte"
    shutil.copy(toy, path)
    program = load(path)
    path.unlink()
    assert program.run_method("add", torch.ones(2)).total.tolist() == [8.0, 0.0]
