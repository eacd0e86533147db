"""One attention block built by mmpack in three ways: with multi-head products, converted by
ExecuTorch's pass, and rewritten."""

from __future__ import annotations

import runpy
from typing import Any

from attrs import frozen
from torch import Tensor

from mmpack.multimethod.flow.program import load
from mmpack.wrappers.attention_block import AttentionBlock

from ..compile.projects import Project

WAYS = {"plain": "false", "passed": "true", "rewritten": "{method: rewrite}"}
SMALL = {"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "new": 8, "past": 24}

MODEL = """\
import torch
from mmpack.examples.adder.model import AdderConfig, Layer, rotary
from mmpack.wrappers.attention_block import AttentionBlock
from mmpack.wrappers.cache_mask import CacheMask

def make():
    torch.manual_seed(0)
    config = AdderConfig(
        hidden={width}, heads={heads}, kv_heads={kv_heads}, head_dim={head_dim}, mlp=8
    )
    return Layer(config).eval().requires_grad_(False)

def examples():
    '''Keys and values are what the block itself makes of earlier tokens.'''
    block = AttentionBlock(make(), {head_dim}, **{options})
    none = torch.zeros(1, {kv_heads}, 0, {head_dim})
    positions = torch.arange({past} // 2, {past} // 2 + {new})
    visible = CacheMask(torch.nn.Identity(), {past})(positions)
    every = torch.ones({past}, {past}, dtype=torch.bool)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        earlier = torch.randn(1, {past}, {width}, generator=g)
        turns = rotary(torch.arange({past}), {head_dim})
        _, k, v = block(earlier, *turns, every, none, none)
        hidden = torch.randn(1, {new}, {width}, generator=g)
        now = rotary(positions, {head_dim})
        yield hidden, *now, visible, k.contiguous(), v.contiguous()
"""
METHOD = """
  {way}:
    module: "."
    wrapper: attention_block
    args: {{head_dim: {head_dim}, {options}}}
    target: {way}
    {calibration}
    inputs:
      hidden: [1, {new}, {width}]
      cos: [{new}, {head_dim}]
      sin: [{new}, {head_dim}]
      visible: {{shape: [{new}, {rows}], dtype: bool}}
      past_k: [1, {kv_heads}, {past}, {head_dim}]
      past_v: [1, {kv_heads}, {past}, {head_dim}]
"""


@frozen(eq=False)
class Built:
    """inputs: those of one call. expected: what eager PyTorch gives for them. got: way -> what its
    method gives. sizes: way -> bytes."""

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    got: dict[str, tuple[Tensor, ...]]
    sizes: dict[str, int]


def build_ways(
    project: Project,
    precision: str,
    options: dict[str, Any],
    sizes: dict[str, int] | None = None,
    ways: dict[str, str] = WAYS,
) -> Built:
    """Built without verification: what it would compare is compared in the test."""
    size = {**SMALL, **(sizes or {})}
    args = ", ".join(f"{name}: {str(value).lower()}" for name, value in options.items())
    path = project.file("model.py", MODEL.format(options=options, **size))
    head = "mmpack: 1\nmodel: {factory: model.py:make}\ntargets:\n"
    target = "  {}: {{backend: qnn, soc: SM8750, precision: {}, mha2sha: {}}}\n"
    calibration = "calibration: model.py:examples" if precision != "fp16" else ""
    rows = size["past"] + size["new"]
    more = {"options": args, "calibration": calibration, "rows": rows, **size}
    methods = [METHOD.format(way=way, **more) for way in ways]
    head += "".join(target.format(way, precision, given) for way, given in ways.items())
    project.spec("methods:" + "".join(methods), head)
    report = project.build(workers=True, verify=False)
    program = load(project.output)
    model = runpy.run_path(str(path))
    *_, inputs = model["examples"]()
    return Built(
        inputs,
        AttentionBlock(model["make"](), size["head_dim"], **options)(*inputs),
        {way: tuple(program.run_method(way, *inputs)) for way in ways},
        {method.signature.method: method.size for method in report.methods},
    )
