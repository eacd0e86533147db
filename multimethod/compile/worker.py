"""The worker process: takes jobs as JSON lines on stdin, lowers each, answers on a pipe.

Whatever a job prints, from Python or from C++, goes to that job's log file. The process stays
warm between jobs, and ends when stdin does: at once, so that it does not outlive a killed parent.

    python -m mmpack.multimethod.compile.worker [--expect BACKEND OPTIONS]

One that is begun before there is work is told the backend and the options, as JSON, of what is to
come, and lowers something for these first.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mmpack.multimethod.errors import MmpackError
from mmpack.multimethod.memory import (
    collect_seldom,
    forget_peak,
    give_back,
    keep_no_blocks,
    peak_memory,
)

EXPECT = "--expect"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _die_with_parent()
    keep_no_blocks()
    jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    _get_ready()
    most = 0
    while True:
        job = jobs.get()
        most = max(most, peak_memory())
        apart = forget_peak()
        answer = _logged(job)
        own = peak_memory()
        most = max(most, own)
        answer |= {"memory": most, "own_memory": own if apart else None}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        _forget()


def _get_ready() -> None:
    """Do what takes seconds and is done once a process, before there is a job."""
    collect_seldom()
    with suppress(Exception):  # then the first job meets it too, and has a log for it
        import mmpack.multimethod.compile.lower  # noqa: F401
    if EXPECT in sys.argv:
        _warm_up(*sys.argv[sys.argv.index(EXPECT) + 1 :])


def _warm_up(backend: str, options: str) -> None:
    try:
        from mmpack.multimethod.compile.warm import warm_up

        warm_up(backend, json.loads(options))
    except Exception:  # a job may be of another kind, and then takes a little longer
        traceback.print_exc()
    finally:
        _forget()


def _forget() -> None:
    """Let go of the job. Three things would keep it, weights and compiled data, so that a worker
    held the last method, or all, beside the next: torch's cache of what operators do to fake
    tensors, whose keys hold the lowered modules; executorch's of comparisons of graphs; and what
    XNNPACK's partitioner last had to say of a node, which its modules keep with the node."""
    if torch := sys.modules.get("torch._subclasses.fake_tensor"):
        torch.FakeTensorMode.cache_clear()
    if executorch := sys.modules.get("executorch.exir.backend.utils"):
        executorch.is_same_node.cache_clear()
        for module in list(sys.modules.values()):
            said = getattr(module, "__dict__", {}).get("why")
            if isinstance(said, executorch.WhyNoPartition):
                said.node = None
    give_back()


def _listen(jobs: SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def _die_with_parent() -> None:
    """Linux does it even while a compiler written in C++ lets no thread of Python run."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def _logged(job: dict[str, Any]) -> dict[str, Any]:
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    except OSError as error:
        return {"error": f"{job['method']}: its log cannot be written: {error.strerror}"}
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return _run(job)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    try:
        import torch

        from mmpack.multimethod.compile.carried import run_carried
        from mmpack.multimethod.compile.lower import lower
        from mmpack.multimethod.compile.quantize import as_plain, quantize
        from mmpack.multimethod.compile.unit_file import read_about, read_program
        from mmpack.multimethod.compile.widen import widen_program

        torch.set_num_threads(job["threads"])
        contents = Path(job["contents"]) if job["contents"] is not None else None
        unit = read_about(Path(job["unit"]), contents)
        run_carried(unit.code, contents)
        method, backend, options = unit.method, unit.backend, unit.options
        program = read_program(Path(job["unit"]), unit, contents)
        widen_program(program)
        scales: dict[Any, Any] = {}
        if unit.plan is not None:
            program, scales = quantize(program, method, backend, options, unit.plan)
        lowered = lower(program, method, backend, options, Path(job["output"]), unit.io)
    except MmpackError as error:
        return {"error": str(error)}
    except OSError as error:
        traceback.print_exc()
        return {"error": f"{job['method']}: {error}", "unwritten": True}
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{job['method']}: {type(error).__name__}: {error}"}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return {
        "operators": lowered.operators,
        "delegated": lowered.delegated,
        "left": dict(lowered.left),
        "scales": as_plain(scales),
        "extra": dict(lowered.extra),
    }


if __name__ == "__main__":
    main()
