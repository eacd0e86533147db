"""A worker process that lowers nothing: each job's unit is JSON that says what it does, or, like a
real one, an archive that holds such a file.

Everything around the lowering is the real worker's: jobs, answers, the log, the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from mmpack.multimethod.compile import worker


def orders(unit: Path) -> dict[str, Any]:
    found: dict[str, Any]
    if zipfile.is_zipfile(unit):
        with zipfile.ZipFile(unit) as archive:
            found = json.loads(archive.read("fake.json"))
    else:
        found = json.loads(unit.read_text())
    return found


def run(job: dict[str, Any]) -> dict[str, Any]:
    options = orders(Path(job["unit"]))
    if pids := options.get("pids"):
        child = subprocess.Popen(["sleep", "1000"]) if options.get("child") else None
        numbers = [os.getpid(), *([child.pid] if child else [])]
        Path(pids).write_text(" ".join(map(str, numbers)))
    if options.get("noise"):
        print("from Python")
        print("to stderr", file=sys.stderr, flush=True)
        os.write(1, b"to the descriptor\n")
        ctypes.CDLL(None).puts(b"from C")
        ctypes.CDLL(None).fflush(None)
        subprocess.run(["echo", "from a child"], check=True)
        sys.stdout.flush()
    if meeting := options.get("meet"):  # with so many others
        Path(meeting, job["method"]).touch()
        end = time.monotonic() + 60
        while len(os.listdir(meeting)) < options["count"] and time.monotonic() < end:
            time.sleep(0.01)
    if options.get("die") == "exit":
        os._exit(7)
    if options.get("die") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.get("half"):
        os.write(int(options["half"]), b'{"opera')
        os._exit(0)
    if (once := options.get("hang_once")) and not Path(once).exists():
        Path(once).write_text(str(os.getpid()))
        options["hang"] = True
    if options.get("hang"):
        while True:
            time.sleep(1)
    if take := options.get("take"):
        bytes(b"1" * take)
    if options.get("fail"):
        return {"error": f"{job['method']}: it failed"}
    Path(job["output"]).write_text(f"object of {job['method']}")
    return {
        "operators": 1,
        "delegated": 0,
        "left": {},
        "pid": os.getpid(),
        "threads": job["threads"],
    }


if __name__ == "__main__":
    worker._run = run
    worker._get_ready = lambda: None
    worker.main()
