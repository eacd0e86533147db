"""Buffers put back: a model is run to learn about it, and must be afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_buffers(*modules: nn.Module) -> Iterator[None]:
    """Undo after the block whatever it does to the buffers of some modules.

    A module may write into a buffer, put another tensor in its place (`self.cache = …`) or
    register a new one; the same tensors with the same values are there again afterwards.
    """
    owners = list(dict.fromkeys(owner for module in modules for owner in module.modules()))
    tables = [(owner, dict(owner._buffers)) for owner in owners]
    values = {
        id(buffer): buffer.detach().clone()
        for _, table in tables
        for buffer in table.values()
        if buffer is not None
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, table in tables:
                owner._buffers.clear()
                owner._buffers.update(table)
                for buffer in table.values():
                    if buffer is not None:
                        buffer.copy_(values[id(buffer)])
