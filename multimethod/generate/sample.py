"""Logits -> the next token: the likeliest, or one drawn by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from mmpack.multimethod.errors import CallError


class Sampler:
    """Greedy, unless something is said that only drawing can heed.

    temperature: what logits are divided by before one is drawn; 0 is greedy, none given is 1.
    top_k: draw from the k likeliest only. top_p: and only from the fewest likeliest that together
    have this probability. seed: the same one draws the same tokens from the same logits.

    Raises CallError for what no sampler can be.
    """

    def __init__(
        self,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        if temperature is not None and not 0 <= temperature < float("inf"):
            raise CallError(f"temperature: expected a number that is not negative: {temperature}")
        if top_k is not None and top_k < 1:
            raise CallError(f"top-k: expected at least 1, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise CallError(f"top-p: expected more than 0 and at most 1, got {top_p}")
        narrowed = [n for n, v in (("top-k", top_k), ("top-p", top_p)) if v is not None]
        self.greedy = not temperature if temperature is not None else not narrowed
        if self.greedy and (narrowed or seed is not None):
            told = " and ".join([*narrowed, *(["seed"] if seed is not None else [])])
            raise CallError(f"{told}: for drawing, and without a temperature nothing is drawn")
        self._temperature = 1.0 if temperature is None else temperature
        self._top_k, self._top_p = top_k, top_p
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        """[vocabulary] -> a token. The first of those that are equally likely, if greedy."""
        if self.greedy:
            return int(logits.argmax())
        drawn = torch.multinomial(self.probabilities(logits), 1, generator=self._generator)
        return int(drawn)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[vocabulary] -> the probabilities that are drawn by, [vocabulary] float32."""
        logits = logits.to(torch.float32) / self._temperature
        if self._top_k is not None and self._top_k < len(logits):
            least = logits.topk(self._top_k).values[-1]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self._top_p is not None and self._top_p < 1:
            ordered, order = logits.sort()
            # From the least likely on: those that all together are beyond what is wanted.
            beyond = ordered.softmax(0).cumsum(0) <= 1 - self._top_p
            beyond[-1] = False
            logits = logits.masked_fill(beyond.scatter(0, order, beyond), float("-inf"))
        return logits.softmax(0)
