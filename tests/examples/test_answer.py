"""What the command of `examples/npu_cpu` says to a wrong question or program; no QNN needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mmpack.examples.npu_cpu.answer import main


@pytest.mark.parametrize("question", ["12", "a+b", "1+1000", ""])
def test_a_question_that_is_no_sum(question: str) -> None:
    done = CliRunner().invoke(main, ["npu_cpu.pte", question])
    assert done.exit_code == 9  # CallError, in the README's table
    expected = f"{question!r}: expected a sum of two numbers of up to 3 digits: 123+989"
    assert done.output == f"error: {expected}\n"


@pytest.mark.parametrize("arguments", [[], ["npu_cpu.pte"], ["npu_cpu.pte", "1+2", "3+4"]])
def test_too_few_and_too_many_arguments(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert done.output.startswith("Usage:") and "PROGRAM SUM" in done.output


def test_a_program_without_the_block(toy: Path) -> None:
    done = CliRunner().invoke(main, [str(toy), "1+2"])
    assert done.exit_code == 10  # FlowError
    assert done.output == f"error: {toy}: no flow 'block'\n"


def test_what_is_no_program_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.pte").write_text("no program")
    for name in ("text.pte", "nowhere.pte"):
        done = CliRunner().invoke(main, [str(tmp_path / name), "1+2"])
        assert done.exit_code == 6  # FormatError
        assert done.output.startswith("error: ") and done.output.count("\n") == 1
        assert name in done.output
