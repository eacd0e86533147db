"""The worker process: takes jobs as JSON lines on stdin, lowers each, answers on a pipe.

Whatever a job prints, from Python or from C++, goes to that job's log file. The process stays
warm between jobs, and ends when stdin does, so it does not outlive a killed parent by more than
the job it is at.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from mmpack.multimethod.errors import MmpackError


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        with open(job["log"], "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        answers.write(json.dumps(_run(job)) + "\n")
        answers.flush()


def _run(job: dict[str, Any]) -> dict[str, Any]:
    try:
        import torch

        from mmpack.multimethod.compile.lower import lower

        torch.set_num_threads(job["threads"])
        lowered = lower(
            torch.export.load(job["unit"]),
            job["method"],
            job["backend"],
            job["options"],
            Path(job["output"]),
        )
    except MmpackError as error:
        return {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{job['method']}: {type(error).__name__}: {error}"}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return {
        "operators": lowered.operators,
        "delegated": lowered.delegated,
        "left": dict(lowered.left),
    }


if __name__ == "__main__":
    main()
