"""Methods that reach one cache of keys must turn them alike, or nothing is built."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mmpack.multimethod import check
from mmpack.multimethod.errors import ModelError

HEAD = """\
mmpack: 1
model: {factory: "mmpack.examples.adder.model:adder", args: {layers: 2}}
dims: {new: 4, one: 1, kv: {min: 4, max: 16, step: 4}}
targets: {plain: {backend: portable}}
"""
BLOCK = """
  block.{size}:
    module: layers.0
    wrapper: attention_block
    args: {{head_dim: 16{rotation}}}
    target: plain
    inputs:
      hidden: [1, {size}, 96]
      cos: [{size}, 16]
      sin: [{size}, 16]
      visible: {{shape: [{size}, {length}], dtype: bool}}
      past_k: [1, 2, 12, 16]
      past_v: [1, 2, 12, 16]
    outputs: [hidden, k, v]
"""
QKV = """
  qkv.{layer}.{size}:
    module: layers.{layer}
    wrapper: qkv_proj
    args: {{head_dim: 16{rotation}}}
    target: plain
    inputs: {{hidden: [1, {size}, 96], cos: [{size}, 16], sin: [{size}, 16]}}
    outputs: [q, k, v]
"""
ATTENTION = """
  attention.{size}:
    module: embed_tokens
    wrapper: attention
    {args}
    target: plain
    inputs:
      q: [1, {size}, 6, 16]
      k: [1, kv, 2, 16]
      v: [1, kv, 2, 16]
      positions: {{shape: [{size}], dtype: int64, range: 0..15}}
    outputs: mixed
"""
FLOW = """
  flow.{size}:
    cut: {{hidden: {size}, cos: {size}, sin: {size}}}
    reference: none
    steps:
      - {{run: qkv.{layer}.{size}, append: {{k: keys, v: values}}}}
      - {{run: attention.{size}, with: {{k: keys, v: values}}}}
    outputs: [mixed]
"""
R3 = ", rotation: r3"


def refused(project: Any) -> str:
    """What `check --model` says, and `build` the same."""
    with pytest.raises(ModelError) as checked:
        check(project.folder / "spec.yaml", model=True)
    with pytest.raises(ModelError) as built:
        project.build()
    assert str(checked.value) == str(built.value)
    return str(built.value)


def test_prefill_and_decoding_of_a_layer_turn_alike(project: Any) -> None:
    one, other = (
        BLOCK.format(size=size, length=12 + n, rotation=rotation)
        for size, n, rotation in (("new", 4, R3), ("one", 1, ""))
    )
    project.spec(f"methods:\n{one}{other}", HEAD)
    expected = (
        "block.one has rotation none, block.new has r3, and both are cut from layers.0: give both "
        "the same `rotation`"
    )
    assert re.match(r"\S*spec\.yaml:\d+", told := refused(project))
    assert expected in told


@pytest.mark.parametrize(("args", "told"), [("", "none"), ("args: {masked_softmax: true}", "none")])
def test_attention_says_what_is_in_the_cache_that_it_reads(
    project: Any, args: str, told: str
) -> None:
    project.spec(
        "methods:\n"
        + QKV.format(layer=1, size="new", rotation=R3)
        + ATTENTION.format(size="new", args=args)
        + "flow:\n"
        + FLOW.format(layer=1, size="new"),
        HEAD,
    )
    assert f"attention.new has rotation {told}, qkv.1.new has r3" in refused(project)


def test_two_flows_that_fill_one_cache_turn_alike(project: Any) -> None:
    project.spec(
        "methods:\n"
        + QKV.format(layer=0, size="new", rotation=R3)
        + ATTENTION.format(size="new", args="args: {rotation: r3}")
        + QKV.format(layer=1, size="one", rotation="")
        + ATTENTION.format(size="one", args="").replace("embed_tokens", "norm")
        + "flow:\n"
        + FLOW.format(layer=0, size="new")
        + FLOW.format(layer=1, size="one"),
        HEAD.replace("one: 1", "one: 2").replace("step: 4", "step: 2"),
    )
    assert "both reach the cache 'keys'" in refused(project)


def test_layers_may_differ_and_what_agrees_is_built(project: Any) -> None:
    turned = [BLOCK.format(size=s, length=12 + n, rotation=R3) for s, n in (("new", 4), ("one", 1))]
    plain = BLOCK.format(size="new", length=16, rotation="")
    plain = plain.replace("layers.0", "layers.1").replace("  block.", "  other.")
    project.spec("methods:\n" + "".join([*turned, plain]), HEAD)
    report = project.build()
    assert [m.error < 1e-4 for m in report.methods] == [True] * 3
    program = project.program()
    hidden, cos = torch.randn(1, 1, 96), torch.ones(1, 16)
    past = torch.randn(1, 2, 12, 16)
    visible = torch.zeros(1, 13, dtype=torch.bool)
    visible[0, 12] = True
    got = program.run_method("block.one", hidden, cos, cos, visible, past, past)
    assert got.k.shape == (1, 2, 1, 16)
