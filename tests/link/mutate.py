"""Damages files at random, and finds out what the stock runtime makes of those that we accept.

Run as a script it is the child process: it loads and executes each file named on its standard
input and says so, so that the parent knows which one killed it.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import frozen

INTERESTING = (
    0,
    1,
    2,
    4,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


@frozen
class Crash:
    path: Path
    signal: int
    log: str


def mutated(data: bytes, seed: int, *, limit: int) -> tuple[str, bytes]:
    """What was done, and the damaged bytes. The first `limit` bytes are hit."""
    rng = random.Random(seed)
    out = bytearray(data)
    how = rng.choice(("bit", "bit", "byte", "u32", "u32", "splice", "truncate", "extend"))
    at = rng.randrange(limit)
    if how == "bit":
        out[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        out[at] = rng.randrange(256)
    elif how == "u32":
        at &= ~3
        value = rng.choice((*INTERESTING, rng.randrange(2**32), rng.randrange(64)))
        out[at : at + 4] = value.to_bytes(4, "little")
    elif how == "splice":
        start, size = rng.randrange(limit), rng.randrange(1, 64)
        out[at : at + size] = data[start : start + size]
    elif how == "truncate":
        out = out[: rng.randrange(len(out))]
    else:
        out += rng.randbytes(rng.randrange(1, 256))
    return f"{how} at {at}", bytes(out)


def crashes(paths: Sequence[Path], inputs: Path) -> list[Crash]:
    """The files that kill a process which loads all methods and calls them."""
    found: list[Crash] = []
    left = list(paths)
    while left:
        child = subprocess.run(
            [sys.executable, __file__, str(inputs)],
            input="\n".join(map(str, left)),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
        )
        done = [line for line in child.stdout.splitlines() if line.startswith("done ")]
        if child.returncode >= 0 and len(done) == len(left):
            return found
        killed = left[len(done)]
        found.append(
            Crash(killed, -child.returncode, child.stderr.partition("Extension modules")[0][-1500:])
        )
        left = left[len(done) + 1 :]
    return found


def child(inputs: str) -> None:
    import faulthandler
    import resource
    import signal

    from executorch.runtime import Runtime

    faulthandler.enable()
    calls = torch.load(inputs)
    runtime = Runtime.get()
    # A damaged arena size of terabytes shall fail to be allocated, not fill the machine.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    for line in sys.stdin.read().splitlines():
        signal.alarm(60)  # an endless loop is a crash, by SIGALRM
        try:
            program = runtime.load_program(line)
            for name in sorted(program.method_names):
                try:
                    method = program.load_method(name)
                    for _ in range(2):
                        method.execute(list(calls.get(name, ())))
                except Exception:
                    pass
        except Exception:
            pass
        signal.alarm(0)
        print("done", line, flush=True)


if __name__ == "__main__":
    child(sys.argv[1])
