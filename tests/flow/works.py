"""Flows to schedule: decoders as `mmpack init` cuts them, and any tasks at all."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from mmpack.multimethod.flow.plan import CacheSpec, Cut, Plan, Step
from mmpack.multimethod.flow.tasks import make_pieces, make_tasks
from mmpack.multimethod.flow.work import Times, Work, make_work
from mmpack.multimethod.signature import Dim, ValueSpec

CHUNK = 4
BOTH = {"npu": 1, "cpu": 1}


def decoder(
    layers: int,
    kv: Dim | None = None,
    state: Mapping[str, tuple[str, ...]] | None = None,
    shared_attention: bool = False,
) -> Plan:
    """`qkv.i`, `attention.i` (or one `attention` for all layers) and `mlp.i` for each layer; rows
    of 1, cut in pieces of 4."""
    kv = kv or Dim("kv", CHUNK, 1024, CHUNK)
    row = ValueSpec("x", "float32", (CHUNK,))
    steps, caches = [], {}
    for i in range(layers):
        attention = "attention" if shared_attention else f"attention.{i}"
        steps += [
            Step(f"qkv.{i}", (("x", "x"),), (("q", "q"),), (("k", f"k.{i}"), ("v", f"v.{i}"))),
            Step(
                attention,
                (("q", "q"), ("k", f"k.{i}"), ("v", f"v.{i}"), ("positions", "positions")),
                (("y", "mixed"),),
                (),
            ),
            Step(f"mlp.{i}", (("x", "x"), ("mixed", "mixed")), (("x", "x"),), ()),
        ]
        for name in (f"k.{i}", f"v.{i}"):
            caches[name] = CacheSpec(ValueSpec(name, "float32", ("kv",)), 0, kv)
    return Plan(
        name="prefill",
        cuts={"x": Cut(row, 0, CHUNK)},
        caches=caches,
        steps=tuple(steps),
        joins={"x": 0},
        reference="none",
        size=CHUNK,
        state=state or {},
    )


def lanes(plan: Plan) -> dict[str, str]:
    """Attention on the CPU, the rest on the NPU."""
    return {s.method: "cpu" if s.method.startswith("attention") else "npu" for s in plan.steps}


def decoder_work(layers: int, pieces: int, times: Times) -> Work:
    plan = decoder(layers)
    tasks = make_tasks(plan, make_pieces(plan, 0, CHUNK * pieces))
    return make_work(tasks, lanes(plan), times)


@st.composite
def works(draw: st.DrawFn, most: int = 7) -> Work:
    """Any tasks on two lanes, of few methods; times are whole, so that sums are exact."""
    count = draw(st.integers(1, most))
    lane_of = {"a": "npu", "b": "cpu", "c": "npu", "d": "cpu", "e": "npu"}
    methods = draw(st.lists(st.sampled_from("abcde"), min_size=count, max_size=count))
    seconds = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    before = [
        tuple(sorted(draw(st.sets(st.integers(0, task - 1), max_size=3)))) if task else ()
        for task in range(count)
    ]
    return Work(
        tuple(methods),
        tuple(lane_of[method] for method in methods),
        tuple(map(float, seconds)),
        tuple(before),
    )
