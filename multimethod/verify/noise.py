"""How much noise quantization adds, and the inputs by which that is judged.

The signal-to-quantization-noise ratio of an output is 10 log10(sum of squares of what eager
PyTorch gives / sum of squares of the difference), in dB: 6 dB for every bit that is right. It is
taken over several calls together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import define

from mmpack.multimethod.compile.calls import Call, Examples, read_calls, spread
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.flow.plan import Plan
from mmpack.multimethod.signature import ValueSpec
from mmpack.multimethod.verify.compare import HUGE, SMALLEST_SCALE, chosen

JUDGES = 16
"""At most so many calls of a method, from all over the samples, are run for each size."""
FLOW_JUDGES = 4
"""At most so many samples are run through a flow."""


@define
class Noise:
    """Sums over all that was given so far."""

    signal: float = 0.0
    noise: float = 0.0
    elements: int = 0
    broken: bool = False

    def add(self, expected: torch.Tensor, got: torch.Tensor) -> None:
        """Count one output. Integers and bools must be equal. NaN and infinities must be where
        they are expected. Huge values (a mask's -1e9) do not count as signal."""
        if expected.shape != got.shape or expected.dtype != got.dtype:
            self.broken = True
            return
        if not expected.dtype.is_floating_point:
            self.broken |= not torch.equal(expected, got)
            return
        odd = ~torch.isfinite(expected)
        self.broken |= not torch.equal(
            torch.nan_to_num(expected[odd]), torch.nan_to_num(got[odd])
        ) or not bool(torch.isfinite(chosen(got, ~odd)).all())
        e, g = chosen(expected, ~odd).double(), chosen(got, ~odd).double()
        huge = e.abs() >= HUGE
        self.broken |= bool(((e[huge] - g[huge]).abs() > 0.1 * e[huge].abs()).any())
        if bool((~huge).any()):
            e, g = chosen(e, ~huge), chosen(g, ~huge)
        self.signal += float(e.square().sum())
        self.noise += float((e - g).square().sum())
        self.elements += e.numel()

    @property
    def sqnr(self) -> float:
        """In dB. Infinite if there is no noise, minus infinity for an output that is wrong in
        more than the precision of its numbers."""
        if self.broken or math.isnan(self.noise):
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(max(self.signal, self.elements * SMALLEST_SCALE**2) / self.noise)


def judging_calls(unit: Unit, examples: Examples) -> tuple[Call, ...]:
    """Recorded calls to judge a method by: of samples that it was not calibrated with if there
    are any, else of those that it was; none if nothing was recorded."""
    calls = examples.held_back.get(unit.name) or examples.calls.get(unit.name) or ()
    return spread(calls, JUDGES)


def resized(
    examples: Examples, calls: Sequence[Call], inputs: Sequence[ValueSpec], sizes: Mapping[str, int]
) -> Iterator[list[torch.Tensor]]:
    """The inputs of some calls with their dims at other sizes: rows repeated, or left out."""
    for call in read_calls(examples.tape, calls):
        yield [_resized(t, value, sizes) for t, value in zip(call, inputs, strict=True)]


def example_flow_inputs(plan: Plan, examples: Examples) -> list[dict[str, torch.Tensor]]:
    """Recorded inputs of a whole flow to judge it by; none if nothing was recorded."""
    calls = spread(examples.flows.get(plan.name, ()), FLOW_JUDGES)
    return [dict(zip(plan.cuts, call, strict=True)) for call in read_calls(examples.tape, calls)]


def _resized(tensor: torch.Tensor, value: ValueSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    for axis, dim in enumerate(value.shape or ()):
        if isinstance(dim, str) and dim in sizes and tensor.shape[axis] != sizes[dim]:
            rows = torch.arange(sizes[dim]) % tensor.shape[axis]
            tensor = tensor.index_select(axis, rows)
    return tensor.contiguous()
