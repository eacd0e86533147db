"""Does a backend work? One small graph is compiled and run in a process of its own: libraries that
crash, hang or print do no harm here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from mmpack.multimethod.targets import BACKENDS

LONGEST = 300.0
"""Seconds until a proof is given up."""
COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "mmpack.multimethod.driver.small_graph")
"""-P: what lies in the working directory is not to be imported."""


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
    target = BACKENDS[backend]
    environment = target.environment(target.options(options))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mmpack-proof-") as folder:
        try:
            done = subprocess.run(
                [*COMMAND, backend, json.dumps(dict(options))],
                cwd=folder,
                env={**os.environ, **environment},
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
    if done.stdout:  # in its own words
        return Proof(seconds, done.stdout.strip())
    said = done.stderr.strip().splitlines() or ["nothing was printed"]
    return Proof(seconds, f"exit code {done.returncode}: " + "\n    ".join(said[-8:]))
