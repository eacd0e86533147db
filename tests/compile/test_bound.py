"""`memory=`: what a build really takes, sampled while it compiles methods with large weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.memory import held

MODEL = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(40))) for _ in range(4)
        )
        for number, weight in enumerate(self.parameters()):
            nn.init.constant_(weight, number / 1e6)
"""
SPEC = """
methods:
  "f{i}": {module: "parts.{i}", each: {i: 0..3}, target: cpu, inputs: {input: [1, 1024]}}
"""
WEIGHTS = 40 * 4 * 1024**2
"""Bytes in one of the four methods."""


def resident(pid: int) -> int:
    """All that is in memory of a process, files too."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(map(int, re.findall(r"^VmRSS:\s*(\d+) kB$", status, re.M))) * 1024


def workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"compile.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def build(project: Any, cache: Path, bound: str) -> tuple[int, int, int]:
    """How many methods were compiled at once; the most that the workers had, with files; and with
    their parent, whose files give way."""
    command = [sys.executable, "-m", "mmpack.cli", "build", str(project.path), "--jobs", "2"]
    command += ["-o", str(project.output), "--cache", str(cache), "--memory", bound]
    most = together = 0
    told = project.folder / "told"
    with told.open("w") as file:
        running = subprocess.Popen([*command, "--log-format", "json"], stdout=file)
        while running.poll() is None:
            try:
                theirs = sum(map(resident, workers(running.pid)))
            except FileNotFoundError:  # one has ended
                theirs = 0
            if theirs:
                most, together = max(most, theirs), max(together, theirs + held(running.pid))
            time.sleep(0.05)
    assert running.returncode == 0
    events = [json.loads(line) for line in told.read_text().splitlines()]
    assert events[-1]["event"] == "built"
    together = max(together, events[-1]["memory"]["together"])
    return max(e["status"]["running"] for e in events if "status" in e), most, together


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks Linux")
def test_workers_stay_within_the_bound(project: Any, tmp_path: Path) -> None:
    project.model(MODEL).spec(SPEC)
    for bound, at_once in ((2.3, 1), (6.0, 2)):
        count, most, together = build(project, tmp_path / f"cache{at_once}", f"{bound}G")
        print(f"\n{bound} GB: {count} at once, workers {most / 1e9:.2f}, all {together / 1e9:.2f}")
        assert count == at_once
        assert most > at_once * WEIGHTS and together < bound * 1e9
