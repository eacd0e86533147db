"""Does a backend work? One small graph is compiled and run, as a build would do it, in a process of
its own: libraries that crash, hang or print do no harm here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

LONGEST = 300.0
"""Seconds until a proof is given up."""
MODEL = """\
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Linear(32, 32)
"""
SPEC = """\
mmpack: 1
model: {{factory: model.py:make}}
targets: {{proof: {target}}}
methods: {{linear: {{module: ".", target: proof, inputs: {{input: [1, 32]}}}}}}
"""
CHILD = """\
import sys
from mmpack.multimethod import MmpackError, build
try:
    build("spec.yaml", "proof.pte", cache="cache")  # which runs it beside eager PyTorch
except MmpackError as error:
    sys.exit(str(error))
"""


@frozen
class Proof:
    """How it went: seconds that it took, and what went wrong, or None."""

    seconds: float
    failure: str | None

    def __str__(self) -> str:
        if self.failure is None:
            return f"a small graph was compiled and run in {self.seconds:.0f} s"
        return f"a small graph cannot be compiled and run: {self.failure}"


def prove(backend: str, options: Mapping[str, Any]) -> Proof:
    """Compile and run one linear layer on a backend, and compare it with eager PyTorch."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mmpack-proof-") as folder:
        target = json.dumps({"backend": backend, **options})
        (Path(folder) / "model.py").write_text(MODEL)
        (Path(folder) / "spec.yaml").write_text(SPEC.format(target=target))
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", CHILD],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            return Proof(LONGEST, f"it took more than {LONGEST:g} s")
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Proof(seconds, None)
    said = done.stderr.strip().splitlines() or ["nothing was printed"]
    how = "" if done.returncode == 1 else f"exit code {done.returncode}: "
    return Proof(seconds, how + "\n    ".join(said[-8:]))
