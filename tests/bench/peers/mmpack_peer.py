"""mmpack: `python mmpack_peer.py read.pte write.pte`.

The first program is cut finely and reads the prompt as a pipeline of two workers of one thread; the
second is the whole decoder as one method, which writes with both threads. It has read a prompt as
long before, outside of what is measured, and what it writes follows on that.
"""

from __future__ import annotations

import os
import sys

import numpy
import torch
from serve import THREADS, serve

from mmpack.multimethod import Context, load

assert os.cpu_count() == THREADS, "ExecuTorch's pool has a thread for each CPU"


class Packed:
    def __init__(self, read: str, write: str) -> None:
        self.reader = load(read, mmap=True, engine="native", threads=1).flow("prefill")
        self.workers = dict.fromkeys(set(self.reader.lanes.values()), THREADS)
        self.writer = load(write, mmap=True, engine="native").flow("decode")
        self.context = Context()

    def read(self, tokens: list[int]) -> numpy.ndarray:
        if not self.context.position:  # the first prompt is not measured
            for token in tokens:
                self.write(token)
        self.context.position = len(tokens)
        out = self.reader.run(
            torch.tensor([tokens]), schedule="out-of-order", lanes=self.workers, give="row"
        )
        logits: numpy.ndarray = out.logits[0, -1].numpy()
        return logits

    def write(self, token: int) -> numpy.ndarray:
        out = self.writer.run(torch.tensor([[token]]), context=self.context)
        logits: numpy.ndarray = out.logits[0, -1].numpy()
        return logits


serve(Packed(*sys.argv[1:]))
