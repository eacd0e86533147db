"""A first lowering, of next to nothing, for what it leaves behind: modules, tables of operators'
decompositions, and the graphs that XNNPACK's partitioner looks for, which it exports once a
process. A process that has done this lowers its first method as fast as its second; without it that
takes twice to three times as long (ExecuTorch 1.5).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def warm_up(backend: str, options: Mapping[str, Any]) -> None:
    """Lower a linear layer of a few weights for a target, and keep nothing of it."""
    import torch

    from mmpack.multimethod.compile.lower import lower

    layer = torch.nn.Linear(4, 4).eval().requires_grad_(False)
    program = torch.export.export(layer, (torch.zeros(1, 4),))
    lower(program, "warm_up", backend, options, Path(os.devnull))
