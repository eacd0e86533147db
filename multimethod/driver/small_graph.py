"""One linear layer, compiled for a backend and run: what `proof.py` starts a process for.

Lowered and run in one process, which imports torch and executorch once, where a build has two that
do; started with the backend's environment, and in a folder of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from mmpack.multimethod.compile.lower import lower
from mmpack.multimethod.errors import MmpackError, VerifyError
from mmpack.multimethod.flow.program import load
from mmpack.multimethod.targets import BACKENDS
from mmpack.multimethod.verify.compare import difference

METHOD = "linear"


def main() -> None:
    """`python -m … BACKEND OPTIONS`, these as JSON. What is wrong goes to stdout, if it is known,
    and what libraries print to stderr."""
    backend, options = sys.argv[1], json.loads(sys.argv[2])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        compile_and_run(backend, options, Path("proof.pte"))
    except MmpackError as error:
        answer.write(str(error))
        answer.close()
        sys.exit(1)


def compile_and_run(backend: str, options: dict[str, object], path: Path) -> None:
    """Raises an MmpackError if the backend does not compile the layer, does not run it, or is
    further from eager PyTorch than it may be. The program is written to `path`."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(32, 32).eval().requires_grad_(False), torch.randn(1, 32)
    lower(torch.export.export(linear, (x,)), METHOD, backend, options, path)
    (got,) = load(path, mmap=True, engine="stock").run_method(METHOD, x)
    target = BACKENDS[backend]
    off, allowed = difference(linear(x), got), target.tolerance(target.options(options))
    if not off <= allowed:
        raise VerifyError(f"its output is off by {off:.3g} from PyTorch's, allowed {allowed:.3g}")


if __name__ == "__main__":
    main()
