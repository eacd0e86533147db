"""What mmpack costs: per call beside the stock runtime, and per command that needs no torch.

pytest tests/bench/test_call.py --benchmark-only -s
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from mmpack.multimethod import load
from mmpack.multimethod.flow.program import Program
from mmpack.multimethod.runtime.graph import Call, Rows

ROUNDS, CALLS = 41, 500
MOST_MICROSECONDS = 5.0
MOST_SECONDS = 0.5
MOST_OF_STOCK = {("blend", None): 0.4, ("blend", 1): 0.4, ("projection", None): 0.8}
"""What a call on the native engine may take, in parts of the stock runtime's time.

Half, as asked for, is beyond reach for the projection: of the stock runtime's 25.9 µs XNNPACK's
kernels alone take 16.1 to 16.8 in two threads (0.62 or more), and 25.9 in one, half of which would
be 0.50 even if threads cost nothing to start and to wait for. What a call adds to that is ours."""
MOST_OF_ADDED = 0.5
"""What a call on the native engine may take beyond the computing alone, in parts of what the stock
runtime takes beyond it; of calls in as many threads."""
ADDER = Path(__file__).parents[2] / "examples" / "adder" / "adder.yaml"


def microseconds(call: Callable[[], Any]) -> float:
    """Of one call, on the average of CALLS."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


@pytest.mark.parametrize("named", [0, 1, 3])
def test_a_call_with_three_inputs(
    toy: Path, stock: Callable[[Path], Any], benchmark: BenchmarkFixture, named: int
) -> None:
    """The difference to `Method.execute`, both loaded from one file, in turns, so that whatever
    else the machine does meets both. `named` inputs are given by name.

    Printed are the median of the differences and that of the best rounds, which is what is held
    to the limit: other processes only ever add time.
    """
    x, y, picks = inputs = [torch.randn(2, 3), torch.randn(2, 3), torch.tensor([2, 0, 0, 1])]
    run = load(toy).run_method
    execute = stock(toy).load_method("blend").execute
    call: Callable[[], Any] = {
        0: lambda: run("blend", x, y, picks),
        1: lambda: run("blend", x, y, picks=picks),
        3: lambda: run("blend", x=x, y=y, picks=picks),
    }[named]
    microseconds(lambda: execute(inputs))
    microseconds(call)
    theirs, ours = [], []
    for _ in range(ROUNDS):
        theirs.append(microseconds(lambda: execute(inputs)))
        ours.append(microseconds(call))
    middle = statistics.median(o - t for o, t in zip(ours, theirs, strict=True))
    best = min(ours) - min(theirs)
    benchmark.extra_info["stock_us"] = round(min(theirs), 2)
    benchmark.extra_info["added_us"] = round(best, 2)
    benchmark.extra_info["added_us_median"] = round(middle, 2)
    benchmark(call)
    print(
        f"\n{named} of 3 inputs by name: stock {min(theirs):.2f} µs a call, mmpack adds "
        f"{best:.2f} µs (median of {ROUNDS} rounds: {middle:.2f} µs)"
    )
    assert best <= MOST_MICROSECONDS


class _Projection(nn.Module):
    """Queries, keys and values of a layer of SmolLM2-135M."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(576, size, bias=False) for size in (576, 192, 192))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


@pytest.fixture(scope="module")
def projection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token's, on XNNPACK: `forward`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(_Projection().eval(), (torch.randn(1, 1, 576),))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path = tmp_path_factory.mktemp("projection") / "projection.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    return path


def computing(program: Program, method: str, inputs: list[torch.Tensor]) -> Callable[[], float]:
    """What measures the microseconds that a call takes within ExecuTorch, and little else: of many
    in a row, which the engine is given as a whole."""
    rows = tuple(Rows(number, 0, 0, len(tensor)) for number, tensor in enumerate(inputs))
    calls = [Call(method, before=(i - 1,) if i else (), inputs=rows) for i in range(CALLS)]
    graph = program.graph(calls)
    assert graph is not None

    def measured() -> float:
        ran = graph.run(inputs, range(CALLS), waits=True, workers=(1,))
        return sum(end - begin for _, _, begin, end in ran) / CALLS * 1e6

    return measured


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("method", ["projection", "blend"])
def test_a_call_on_the_native_engine(
    toy: Path,
    projection: Path,
    stock: Callable[[Path], Any],
    native_engine: object,
    benchmark: BenchmarkFixture,
    method: str,
    threads: int | None,
) -> None:
    """In parts of the time that `Method.execute` takes, signature check included; both in turns,
    and the computing alone with them. `blend` computes next to nothing, so that is what a call
    itself costs. Printed are medians, and the best rounds, whose ratios are held to limits: other
    processes only ever add time."""
    path, name = (projection, "forward") if method == "projection" else (toy, "blend")
    inputs = (
        [torch.randn(1, 1, 576)]
        if method == "projection"
        else [torch.randn(2, 3), torch.randn(2, 3), torch.tensor([2, 0, 0, 1])]
    )
    program = load(path, engine="native", threads=threads)
    run, alone = program.run_method, computing(program, name, inputs)
    execute = stock(path).load_method(name).execute
    for mine, other in zip(run(name, *inputs), execute(inputs), strict=True):
        assert torch.equal(mine, other)
    theirs, ours, computed = [], [], []
    for _ in range(ROUNDS):
        theirs.append(microseconds(lambda: execute(inputs)))
        ours.append(microseconds(lambda: run(name, *inputs)))
        computed.append(alone())
    middle = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
    best = min(ours) / min(theirs)
    benchmark.extra_info["stock_us"] = round(statistics.median(theirs), 2)
    benchmark.extra_info["native_us"] = round(statistics.median(ours), 2)
    benchmark.extra_info["computing_us"] = round(statistics.median(computed), 2)
    benchmark.extra_info["ratio"] = round(middle, 3)
    benchmark.extra_info["ratio_best"] = round(best, 3)
    benchmark(lambda: run(name, *inputs))
    print(
        f"\n{method}, {threads or 'all'} threads: stock {statistics.median(theirs):.2f} µs "
        f"(best {min(theirs):.2f}), native {statistics.median(ours):.2f} µs "
        f"(best {min(ours):.2f}), ratio {middle:.2f} (best {best:.2f}); computing alone "
        f"{statistics.median(computed):.2f} µs (best {min(computed):.2f}), to which stock adds "
        f"{min(theirs) - min(computed):.2f}, native {min(ours) - min(computed):.2f}"
    )
    if threads is None:  # the stock runtime always takes all
        added, most_added = min(ours) - min(computed), min(theirs) - min(computed)
        assert added <= MOST_OF_ADDED * most_added
    if (most := MOST_OF_STOCK.get((method, threads))) is not None:
        assert best <= most


@pytest.mark.parametrize("args", [["check", str(ADDER)], ["--help"]], ids=["check", "help"])
def test_a_command_that_needs_no_torch(args: list[str], benchmark: BenchmarkFixture) -> None:
    """From the start of the process to its end."""
    command = [sys.executable, "-m", "mmpack.cli", *args]
    benchmark.pedantic(
        lambda: subprocess.run(command, capture_output=True, check=True), rounds=7, warmup_rounds=1
    )
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["best_s"] = round(seconds, 3)
    print(f"\nmmpack {args[0]}: {seconds:.2f} s")
    assert seconds < MOST_SECONDS
