"""PyTorch, eager, as transformers runs a model: `python torch_peer.py folder`."""

from __future__ import annotations

import sys

import numpy
import torch
import transformers
from serve import THREADS, serve


class Eager:
    def __init__(self, folder: str) -> None:
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.past = None

    def read(self, tokens: list[int]) -> numpy.ndarray:
        self.past = None
        return self._run(tokens)

    def write(self, token: int) -> numpy.ndarray:
        return self._run([token])

    def _run(self, tokens: list[int]) -> numpy.ndarray:
        out = self.model(
            torch.tensor([tokens]), past_key_values=self.past, use_cache=True, logits_to_keep=1
        )
        self.past = out.past_key_values
        logits: numpy.ndarray = out.logits[0, -1].numpy()
        return logits


serve(Eager(sys.argv[1]))
