"""The list of composite operators, which torch.export wants anew for every decomposition.

ExecuTorch decomposes a program six times or more while it lowers it, and torch 2.13 makes the list
by asking the dispatcher for all operators once for each of some forty namespaces: that was a third
of the time that the lowering of a small method took. Once for all namespaces gives the same list.

Source of what is replaced: torch 2.13, `torch/_export/utils.py`, `_collect_all_valid_cia_ops`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._export import utils
from torch.export import decomp_utils, exported_program

_THEIRS: Any = utils._collect_all_valid_cia_ops
_USERS: tuple[Any, ...] = (exported_program, decomp_utils)
"""The modules of torch that have imported it."""


@contextmanager
def composites_listed_once() -> Iterator[None]:
    """In the block, torch lists composite operators by `composites`. Should two threads be in such
    blocks, the first that leaves only makes the other slower."""
    for module in _USERS:
        module._collect_all_valid_cia_ops = composites
    try:
        yield
    finally:
        for module in _USERS:
            module._collect_all_valid_cia_ops = _THEIRS


def composites() -> set[Any]:
    """All functional composite operators there are at this moment, of any namespace."""
    utils._materialize_cpp_cia_ops()
    found = set(utils._collect_all_valid_cia_ops_for_aten_namespace())  # torch keeps these itself
    for name in list(torch.ops._dir):
        namespace = getattr(torch.ops, name)
        if name == "aten" or not isinstance(namespace, torch._ops._OpNamespace):
            continue
        for operator in list(namespace):
            overloads = getattr(namespace, operator).op_overloads()
            found.update(filter(utils._is_preservable_cia_op, overloads))
    return found
