"""The doctor says what is missing and which command would change that."""

from __future__ import annotations

from typing import Any

import pytest

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
        raise ImportError("No module named 'broken_sdk'")


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
    monkeypatch.setattr(doctor, "BACKENDS", {"npu": Npu, "broken": Broken})
    found = doctor.diagnose()
    assert not found.healthy
    assert (
        "  npu            builds yes, runs no  (no driver)\n"
        "                 to change that: apt-get install npu-driver\n"
        "  broken         builds no, runs no  (No module named 'broken_sdk')\n"
    ) in str(found)


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
    found = doctor.diagnose()
    assert not found.backends["xnnpack"].runs
    assert str(found).endswith("runtime has: nothing")
