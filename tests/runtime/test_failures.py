"""What is said of a run that ExecuTorch failed: its own words, its codes by name, values that are
out of range."""

from __future__ import annotations

import io
import re
import sys
import threading
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import CallError, ExecutionError, load
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.runtime.failures import CODES, LISTENER, heard, with_names

X = torch.zeros(2, 3)
RIGHT, WRONG = torch.tensor([2, 0, 0, 1]), torch.tensor([2, 0, 3, 1])


@pytest.fixture
def program(toy: Path) -> Program:
    return load(toy)


def test_the_codes_are_executorch_s() -> None:
    package = find_spec("executorch")
    assert package is not None and package.submodule_search_locations is not None
    (root,) = package.submodule_search_locations
    header = Path(root, "include", "executorch", "runtime", "core", "error.h").read_text()
    listed = re.findall(r"^  (\w+) = (0x\d+),$", header, flags=re.MULTILINE)
    assert {int(code, 16): name for name, code in listed if name != "Ok"} == CODES


def test_every_code_of_a_message_gets_its_name() -> None:
    assert with_names("failed with error 0x12") == "failed with error 0x12 (InvalidArgument)"
    assert with_names("x, error: 0x:20!") == "x, error: 0x:20 (NotFound)!"
    assert with_names("failed with error 0x7f, at 0x12") == "failed with error 0x7f, at 0x12"


def test_the_reason_is_in_the_exception_and_not_on_the_terminal(
    foreign: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, stderr = load(foreign), sys.stderr
    with pytest.raises(ExecutionError) as raised:
        program.run_method("products", torch.ones(3, 3), torch.ones(4, 5))
    first, *rest = str(raised.value).splitlines()
    assert first == (
        "products: ExecuTorch failed to run it: method->execute() failed with error 0x12 "
        "(InvalidArgument)"
    )
    assert any("in operator aten::mm.out: 0x12" in line for line in rest)
    assert not any("with type id" in line for line in rest)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert sys.stderr is stderr and LISTENER.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_value_out_of_range_is_a_wrong_call(program: Program) -> None:
    with pytest.raises(CallError) as raised:
        program.run_method("blend", X, X, WRONG)
    lines = str(raised.value).splitlines()
    assert lines[0] == "blend: input 'picks': expected values from 0 to 2, got 3"
    assert lines[1] == f"  {program.signature('blend')}"
    assert lines[2].endswith("failed with error 0x12 (InvalidArgument)")
    assert "index[2] = 3 is out of range [0, 3)" in lines[3]
    with pytest.raises(CallError, match="expected values from 0 to 2, got -1"):
        program.run_method("blend", X, X, -RIGHT.clamp(max=1))
    assert torch.equal(program.run_method("blend", X, X, RIGHT).mixed, X)


def test_what_a_run_that_goes_well_prints_is_printed(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = load(toy, engine="stock")
    method = program["blend"]
    run = method.prepare()
    execute = program._engine._methods["blend"].execute

    def talking(inputs: Any) -> list[Any]:
        print("a remark", file=sys.stderr)
        return execute(inputs)  # type: ignore[no-any-return]

    method._run = heard(talking)
    method(X, X, RIGHT)
    assert capsys.readouterr().err == "a remark\n"
    with redirect_stderr(io.StringIO()) as elsewhere:
        method(X, X, RIGHT)
        assert sys.stderr is elsewhere
    assert (elsewhere.getvalue(), capsys.readouterr().err) == ("a remark\n", "")
    with pytest.raises(CallError, match="a remark"):
        method(X, X, WRONG)
    method._run = run
    with pytest.raises(CallError) as raised:
        method(X, X, WRONG)
    assert "a remark" not in str(raised.value)


def test_a_process_without_stderr_can_run_methods(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program["blend"].prepare()
    monkeypatch.setattr(sys, "stderr", None)
    assert torch.equal(program.run_method("blend", X, X, RIGHT).mixed, X)
    assert sys.stderr is None


def test_stderr_comes_back_when_several_threads_load_and_call(toy: Path) -> None:
    stderr, wrong = sys.stderr, []

    def call() -> None:
        for count in range(300):
            if count % 20 == 0:  # loading redirects it as well
                program = load(toy)
            program.run_method("blend", X, X, RIGHT)
            try:
                program.run_method("blend", X, X, WRONG)
            except CallError as error:
                if "expected values from 0 to 2, got 3" in str(error):
                    continue
            wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sys.stderr is stderr and not wrong
