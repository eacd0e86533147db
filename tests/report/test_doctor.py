"""The doctor says what is missing and which command would change that."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod import VerifyError
from mmpack.multimethod.driver import proof
from mmpack.multimethod.driver.proof import Proof, prove
from mmpack.multimethod.driver.small_graph import compile_and_run
from mmpack.multimethod.report import doctor
from mmpack.multimethod.targets import BACKENDS, Availability
from mmpack.multimethod.targets.portable import Portable


class Npu(Portable):
    name = "npu"

    @classmethod
    def available(cls) -> Availability:
        return Availability(
            builds=True, runs=False, detail="no driver", remedy="apt-get install npu-driver"
        )


class Broken(Portable):
    name = "broken"

    @classmethod
    def available(cls) -> Availability:
        raise ImportError("No module named 'broken_sdk.parts'", name="broken_sdk.parts")


class WithoutExecutorch(Broken):
    @classmethod
    def available(cls) -> Availability:
        raise ImportError("libtorch.so: cannot open shared object file")


class Extra(Npu):
    """Not a part of ExecuTorch."""

    name = "extra"
    external = True
    here: bool

    @classmethod
    def available(cls) -> Availability:
        remedy = (
            "pip install --force-reinstall extra" if cls.here else "pip install 'mmpack[extra]'"
        )
        return Availability(cls.here, cls.here, "extra 1.2", remedy)


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    versions: dict[str, str | None] = dict.fromkeys(doctor.PACKAGES, "1.0")
    monkeypatch.setattr(doctor, "installed", lambda name: versions[name])
    monkeypatch.setattr(doctor, "is_supported", lambda name: versions[name] == "1.0")
    monkeypatch.setattr(doctor, "BACKENDS", {"portable": Portable})
    return versions


def test_a_machine_with_everything_is_healthy(everything_installed: Any) -> None:
    found = doctor.diagnose()
    assert found.healthy
    assert "  portable       builds yes, runs yes  (part of executorch)\n" in str(found)
    assert "to change that" not in str(found)
    assert "XnnpackBackend" in str(found).splitlines()[-1]


def test_a_backend_that_cannot_run_comes_with_the_command_that_helps(
    everything_installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "BACKENDS", {"npu": Npu, "b": Broken, "c": WithoutExecutorch})
    found = doctor.diagnose()
    assert not found.healthy
    assert (
        "  npu            builds yes, runs no  (no driver)\n"
        "                 to change that: apt-get install npu-driver\n"
        "  b              builds no, runs no  (No module named 'broken_sdk.parts')\n"
        "                 to change that: pip install --force-reinstall --no-deps 'broken_sdk'\n"
        "  c              builds no, runs no  (libtorch.so: cannot open shared object file)\n"
        "                 to change that: pip install --force-reinstall --no-deps "
        "'executorch>=1.5.1,<1.6'\n"
    ) in str(found)


def test_a_machine_may_do_without_a_backend_that_is_not_executorch_s(
    everything_installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Extra, "here", False, raising=False)
    monkeypatch.setattr(doctor, "BACKENDS", {"portable": Portable, "extra": Extra})
    found = doctor.diagnose()
    assert found.healthy and found.proofs == {}
    assert "                 to change that: pip install 'mmpack[extra]'\n" in str(found)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (None, "builds yes, runs yes  (extra 1.2)\n{}a small graph was compiled and run in 9 s\n"),
        (
            "exit code -11: nothing was printed",
            "builds no, runs no  (extra 1.2)\n{}a small graph cannot be compiled and run: "
            "exit code -11: nothing was printed\n"
            "{}to change that: pip install --force-reinstall extra\n",
        ),
    ],
)
def test_one_that_is_here_has_to_prove_it(
    everything_installed: Any, monkeypatch: pytest.MonkeyPatch, failure: str | None, says: str
) -> None:
    monkeypatch.setattr(Extra, "here", True, raising=False)
    monkeypatch.setattr(doctor, "BACKENDS", {"extra": Extra})
    monkeypatch.setattr(doctor, "prove", lambda name, options: Proof(9.4, failure))
    found = doctor.diagnose()
    assert found.healthy == (failure is None)
    assert "  extra          " + says.replace("{}", " " * 17) in str(found)
    assert ("to change that" in str(found)) == (failure is not None)


def test_a_backend_that_works_is_proven_in_a_process_of_its_own() -> None:
    assert prove("portable", {}).failure is None


def test_a_backend_that_is_further_off_than_it_may_be_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_and_run("portable", {}, tmp_path / "proof.pte")
    monkeypatch.setattr(Portable, "tolerance", lambda options: -1.0)
    with pytest.raises(VerifyError, match=r"off by \S+ from PyTorch's, allowed -1"):
        compile_and_run("portable", {}, tmp_path / "proof.pte")


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have this run in the place of the small graph."""
    monkeypatch.setattr(proof, "COMMAND", (sys.executable, "-c", code))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sys.stderr.write('chatter'); print('in words'); sys.exit(1)", "in words"),
        ("raise KeyError('x')", "exit code 1: Traceback (most recent call last):\n    "),
        ("os.kill(os.getpid(), 11)", "exit code -11: nothing was printed"),
        (
            "assert sys.argv[1:] == ['portable', '{}'], sys.argv; sys.exit(3)",
            "exit code 3: nothing",
        ),
    ],
)
def test_a_proof_that_fails_says_how(monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    child(monkeypatch, f"import os, sys; {code}")
    failure = prove("portable", {}).failure
    assert failure is not None and failure.startswith(told) and "chatter" not in failure


def test_a_proof_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(proof, "LONGEST", 0.2)
    assert str(prove("portable", {})) == (
        "a small graph cannot be compiled and run: it took more than 0.2 s"
    )


def test_packages_that_are_missing_or_too_old_come_with_the_command_that_helps(
    everything_installed: dict[str, str | None],
) -> None:
    everything_installed["torch"] = "2.12.0"
    everything_installed["rich"] = None
    found = doctor.diagnose()
    assert not found.healthy
    assert (
        "  torch          2.12.0\n"
        "                 to change that: pip install 'torch>=2.13,<2.14'\n"
    ) in str(found)
    assert ("  rich           missing\n                 to change that: pip install rich\n") in str(
        found
    )


def test_it_answers_where_executorch_is_not_installed(
    everything_installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "executorch.runtime", None)
    monkeypatch.setattr(doctor, "BACKENDS", dict(BACKENDS))
    monkeypatch.setattr(doctor, "prove", lambda name, options: Proof(1, None))
    found = doctor.diagnose()
    assert not found.backends["xnnpack"].runs
    assert str(found).endswith("runtime has: nothing")
