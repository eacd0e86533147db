"""The flows of a program that make it a language model, and how many tokens it can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mmpack.multimethod.errors import FlowError
from mmpack.multimethod.flow.context import Context
from mmpack.multimethod.flow.execute import Flow, Given
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.flow.runner import Scheduled

TOKENS, LOGITS = "tokens", "logits"
LIMITS = ("get_max_context_len", "get_max_seq_len")
"""Constants that say how many tokens there may be, prompt and answer; the first one that is there
counts. ExecuTorch's own runners ask for them under these names."""


@frozen
class Decoder:
    """decode reads one token a piece, and `read`, the prompt's flow, some of them. longest: how
    many tokens can be fed in all; None: without a limit that the program would tell. schedule,
    lanes: how `read` is run, see `Flow.run`."""

    decode: Flow
    read: Flow
    longest: int | None
    schedule: Scheduled = "serial"
    lanes: Mapping[str, int] | None = None

    def prepare(self, program: Program) -> None:
        """Load all methods that are run into the runtime."""
        for flow in (self.read, self.decode):
            for step in flow.plan.steps:
                program[step.last or step.method].prepare()

    def feed(self, flow: Flow, tokens: list[int], context: Context) -> Tensor:
        """Run a flow: the logits [vocabulary] of what comes after the last token."""
        outputs = self._run(flow, tokens, context, "row")
        logits: Tensor = getattr(outputs, LOGITS)
        return logits.flatten()

    def skip(self, flow: Flow, tokens: list[int], context: Context) -> None:
        """Run a flow on tokens that others follow: nobody wants their logits."""
        self._run(flow, tokens, context, "none")

    def _run(self, flow: Flow, tokens: list[int], context: Context, give: Given) -> Any:
        how = (self.schedule, self.lanes) if flow is self.read else ("serial", None)
        rows = _tokens(flow, tokens)
        return flow.run(rows, context=context, give=give, schedule=how[0], lanes=how[1])


def _tokens(flow: Flow, tokens: list[int]) -> Tensor:
    """As the flow wants them."""
    cut = flow.plan.cuts[TOKENS]
    shape = [1] * len(cut.value.shape or ())
    shape[cut.axis] = len(tokens)
    return torch.tensor(tokens, dtype=getattr(torch, cut.value.dtype)).reshape(shape)


def find_decoder(program: Program) -> Decoder:
    """The flows `decode` and, if there is one, `prefill`. Raises FlowError that says what they
    must be and what there is."""
    flows = program.flows
    if "decode" not in flows:
        raise _error(program, "has no flow 'decode'")
    for name in ("decode", "prefill"):
        if name in flows:
            _require_right(program, flows[name])
    if flows["decode"].plan.size != 1:
        raise _error(program, f"its flow 'decode' reads {flows['decode'].plan.size} tokens a piece")
    used = [flows[name] for name in ("prefill", "decode") if name in flows]
    limits = [cache.dim.max for flow in used for cache in flow.plan.caches.values()]
    told = next((program.constants[name] for name in LIMITS if name in program.constants), None)
    if isinstance(told, int) and told > 0:
        limits.append(told)
    return Decoder(flows["decode"], used[0], min(limits, default=None))


def _require_right(program: Program, flow: Flow) -> None:
    name, plan = flow.plan.name, flow.plan
    if list(plan.cuts) != [TOKENS]:
        raise _error(program, f"its flow {name!r} takes {', '.join(plan.cuts) or 'nothing'}")
    value, axis = plan.cuts[TOKENS].value, plan.cuts[TOKENS].axis
    others = [size for at, size in enumerate(value.shape or ()) if at != axis]
    if value.dtype not in ("int64", "int32") or any(size != 1 for size in others):
        raise _error(program, f"its flow {name!r} takes {value.show({})}")
    if LOGITS not in plan.joins:
        raise _error(program, f"its flow {name!r} gives {', '.join(plan.joins)}")


def _error(program: Program, what: str) -> FlowError:
    told = [
        f"{name}({', '.join(f'{i} by {cut.size}' for i, cut in flow.plan.cuts.items())}) -> "
        f"({', '.join(flow.plan.joins)})"
        for name, flow in program.flows.items()
    ]
    return FlowError(
        f"{program.path}: cannot write text: {what}; expected a flow decode(tokens by 1) -> "
        "(logits) for one text at a time, and perhaps a flow prefill(tokens by any number) -> "
        f"(logits); there is {'; '.join(told) or 'no flow'}"
    )
