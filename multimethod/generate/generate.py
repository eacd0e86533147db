"""Tokens -> more tokens: the prompt through the program's flows, then one token after the other."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from attrs import define, evolve
from torch import Tensor

from mmpack.multimethod.errors import CallError, counted
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.flow.runner import Scheduled
from mmpack.multimethod.generate.decoder import Decoder, find_decoder
from mmpack.multimethod.generate.sample import Sampler


@define
class Statistics:
    """Of a generation so far. Tokens that were fed, and the seconds that feeding them took, in the
    two phases; the first token that is made comes from `prefill`. load_seconds: loading the
    methods, before. ended: why there are no more tokens, in words."""

    load_seconds: float = 0.0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    ended: str = ""

    def __str__(self) -> str:
        prefill = _speed("prefill", self.prefill_tokens, self.prefill_seconds)
        decode = _speed("decode", self.decode_tokens, self.decode_seconds)
        return "; ".join(filter(None, [prefill, decode, self.ended]))


class Generation(Iterator[int]):
    """Tokens as they are made; `statistics` are those so far."""

    def __init__(
        self,
        program: Program,
        decoder: Decoder,
        prompt: list[int],
        sampler: Sampler,
        most: int | None,
        stop: frozenset[int],
    ) -> None:
        self.statistics = Statistics()
        self._program, self._decoder, self._prompt = program, decoder, prompt
        self._sampler, self._most, self._stop = sampler, most, stop
        self._context = Context()
        self._made = self._tokens()

    def __next__(self) -> int:
        return next(self._made)

    def _tokens(self) -> Iterator[int]:
        statistics, decoder = self.statistics, self._decoder
        began = time.perf_counter()
        decoder.prepare(self._program)
        statistics.load_seconds = time.perf_counter() - began
        # In a pipeline all pieces are under way at once.
        size = decoder.read.plan.size if decoder.schedule == "serial" else len(self._prompt)
        for start in range(0, len(self._prompt), size):
            piece = self._prompt[start : start + size]
            began = time.perf_counter()
            if start + size < len(self._prompt):
                decoder.skip(decoder.read, piece, self._context)
            else:
                logits = decoder.feed(decoder.read, piece, self._context)
            statistics.prefill_tokens += len(piece)
            statistics.prefill_seconds += time.perf_counter() - began
        made = 0
        while True:
            token = self._sampler(logits)
            made += 1
            statistics.ended = self._end(token, made)
            yield token
            if statistics.ended:
                return
            began = time.perf_counter()
            logits = decoder.feed(decoder.decode, [token], self._context)
            statistics.decode_tokens += 1
            statistics.decode_seconds += time.perf_counter() - began

    def _end(self, token: int, made: int) -> str:
        """Why this token is the last, or ""."""
        if token in self._stop:
            return "the text is at its end"
        if made == self._most:
            return f"stopped after {counted(made, 'token')}"
        longest = self._decoder.longest
        if longest is not None and len(self._prompt) + made > longest:
            return f"the program's context of {longest} tokens is full"
        return ""


def generate(
    program: Program,
    tokens: Sequence[int] | Tensor,
    *,
    max_tokens: int | None = None,
    stop: Collection[int] = (),
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    schedule: Scheduled = "serial",
    lanes: Mapping[str, int] | None = None,
) -> Generation:
    """The tokens that a program writes after those given.

        run = generate(program, prompt, max_tokens=100, stop=tokenizer.eos)
        for token in run: ...
        print(run.statistics)

    It needs a flow `decode` that takes `tokens`, cut into single ones, and gives `logits`; the
    prompt is read by a flow `prefill` if there is one, else by `decode` too.

    tokens: the prompt, at least one. max_tokens: how many are made at most. stop: tokens that end
    the text; the one that did is given too. It also ends when the context is full, by the
    program's constant `get_max_context_len` or what its caches hold.
    temperature, top_k, top_p, seed: see `Sampler`; none of them given is greedy.
    schedule, lanes: how the prompt is read, see `Flow.run`; the tokens are the same.

    Raises FlowError for a program that has no such flows, CallError for a prompt that is empty or
    longer than the context, or options that cannot be; while tokens are made, whatever
    `run_method` raises.
    """
    decoder = find_decoder(program)
    sampler = Sampler(temperature, top_k, top_p, seed)
    if max_tokens is not None and max_tokens < 1:
        raise CallError(f"max-tokens: expected at least 1, got {max_tokens}")
    prompt = [int(t) for t in (tokens.flatten().tolist() if isinstance(tokens, Tensor) else tokens)]
    if not prompt:
        raise CallError("the prompt is empty; at least one token is needed to go on from")
    if decoder.longest is not None and len(prompt) > decoder.longest:
        raise CallError(
            f"the prompt has {len(prompt)} tokens, and {program.path} has room for "
            f"{decoder.longest}, answer included"
        )
    if schedule != "serial":
        decoder = evolve(decoder, schedule=schedule, lanes=lanes)
    return Generation(program, decoder, prompt, sampler, max_tokens, frozenset(stop))


def _speed(phase: str, count: int, seconds: float) -> str:
    if not count:
        return f"{phase} 0 tokens"
    rate = f", {count / seconds:.1f} tokens/s" if seconds else ""
    return f"{phase} {counted(count, 'token')}{rate}"
