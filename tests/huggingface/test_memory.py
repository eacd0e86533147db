"""What building from a large checkpoint takes, beside the same build of a tiny one.

Counted is the proportional set size (PSS) of the whole process tree, sampled: what each process has
for itself, and its part of what is shared, mapped files among it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .checkpoints import llama_spec, stream_llama

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 5632,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "vocab_size": 16000,
}
"""A fourteenth of the weights is in the largest object, as in checkpoints that fill a machine."""
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LARGE["num_hidden_layers"],
    "num_attention_heads": 4,
    "vocab_size": 61,
}


def built(folder: Path, name: str, sizes: dict[str, int]) -> tuple[int, int]:
    """Bytes of the weights, and at the peak of the build: all layers in two sizes, and both flows
    compared."""
    total = stream_llama(folder / name, **sizes)
    config = json.loads((folder / name / "config.json").read_text())
    spec = folder / f"{name}.yaml"
    text = llama_spec(name, config, sizes["num_hidden_layers"], 8, 64)
    assert "reference: logits" in text
    spec.write_text(text)
    command = [sys.executable, "-m", "mmpack.cli", "build", str(spec)]
    command += ["-o", str(folder / f"{name}.pte"), "--cache", str(folder / f"{name}-cache")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(pss, tree(process.pid))))
            time.sleep(0.1)
    assert process.returncode == 0
    return total, peak


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:  # it has ended
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@pytest.mark.slow
def test_a_build_takes_at_most_half_as_much_again_as_the_checkpoint(tmp_path: Path) -> None:
    _, base = built(tmp_path, "tiny", TINY)
    total, peak = built(tmp_path, "large", LARGE)
    largest = LARGE["vocab_size"] * LARGE["hidden_size"] * 4
    print(f"\nweights {total / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, tiny {base / 1e6:.0f} MB")
    assert total > 450e6
    assert peak - base < 1.5 * total + largest
