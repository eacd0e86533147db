"""What all peers have in common: a process that reads a prompt and writes tokens whenever it is
told to on stdin, and answers how many seconds that took."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Protocol

import numpy

THREADS = 2
CONTEXT = 1024


class Peer(Protocol):
    def read(self, tokens: list[int]) -> numpy.ndarray:
        """Forget everything and read a prompt: the logits [vocabulary] of its last token."""
        ...

    def write(self, token: int) -> numpy.ndarray:
        """Read one token more: its logits."""
        ...


def serve(peer: Peer) -> None:
    """Lines of JSON: {"prompt": [...], "write": 32, "logits": file} -> {"read": s, "write": s}, the
    latter for each token. The logits that are saved are those of the prompt's last token."""
    print("ready", file=sys.__stdout__, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        began = time.perf_counter()
        logits = peer.read(task["prompt"])
        read = time.perf_counter() - began
        if task.get("logits"):
            numpy.save(Path(task["logits"]), logits)
        began = time.perf_counter()
        for number in range(task["write"]):
            peer.write(number % 1000)
        write = (time.perf_counter() - began) / max(task["write"], 1)
        print(json.dumps({"read": read, "write": write}), file=sys.__stdout__, flush=True)
