"""Attention quantized by ExecuTorch's own functions and lowered for QNN, in a process of its own.

    python heads.py '[{"precision": "16a4w", "mha2sha": true}, …]' FOLDER

`run_heads` starts it. Figures and outputs go to FOLDER/answers.pt. For what mmpack's own build does
not tell: an 8-bit cache, and what each stage costs. All else is built from a spec, in `ways.py`.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = {"width": 96, "heads": 6, "kv_heads": 2, "head_dim": 16, "new": 8, "past": 24}


def run_heads(folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What `answer` gives for each request, made in a process that QNN may crash."""
    from mmpack.multimethod.targets import BACKENDS

    qnn = BACKENDS["qnn"]
    given = qnn.environment(qnn.options({"soc": "SM8750"}))
    libraries = Path(given["LD_LIBRARY_PATH"].partition(":")[0])
    root = folder / "sdk"  # ExecuTorch's quantizer looks for the libraries where an SDK has them
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "x86_64-linux-clang").symlink_to(libraries)
    with (folder / "log").open("w") as log:
        subprocess.run(
            [sys.executable, __file__, json.dumps(requests), str(folder)],
            env={**os.environ, **given, "QNN_SDK_ROOT": str(root), "LIBRARIES": str(libraries)},
            stdout=log,
            stderr=log,
            check=True,
        )
    answers: list[dict[str, Any]] = torch.load(folder / "answers.pt")
    return answers


class Blocks(nn.Module):
    """Some blocks one after the other, each with its own cache of keys and of values."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        rows = []
        for i, block in enumerate(self.blocks):
            hidden, k, v = block(hidden, cos, sin, visible, caches[2 * i], caches[2 * i + 1])
            rows += [k, v]
        return hidden, *rows


def single_heads(block: Any) -> nn.Module:
    """The same attention written as one head a product, as one would for QNN without the pass."""
    from mmpack.wrappers._pointwise import to_image
    from mmpack.wrappers._softmax import visible_softmax
    from mmpack.wrappers.rotary import rotate

    class SingleHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.o_proj = block.norm, block.o_proj
            size = block.head_dim
            self.q, self.k, self.v = (
                nn.ParameterList(p.weight.split(size))
                for p in (block.q_proj, block.k_proj, block.v_proj)
            )

        def forward(
            self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, pk: Tensor, pv: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            image = to_image(self.norm(hidden))

            def project(weight: Tensor) -> Tensor:
                return F.conv2d(image, weight).permute(0, 3, 1, 2).squeeze(-1)

            ks = [rotate(project(w), cos, sin) for w in self.k]
            vs = [project(w) for w in self.v]
            group = len(self.q) // len(self.k)
            heads = []
            for h, weight in enumerate(self.q):
                g = h // group
                keys = torch.cat([pk[:, g], ks[g]], dim=1)
                values = torch.cat([pv[:, g], vs[g]], dim=1)
                scores = rotate(project(weight), cos, sin) @ keys.transpose(-2, -1)
                scores = scores * block.head_dim**-0.5
                heads.append(visible_softmax(scores, visible[None], block.masked_softmax) @ values)
            mixed = torch.cat(heads, dim=-1)
            out = hidden + self.o_proj(to_image(mixed)).squeeze(-1)
            return out, torch.stack(ks, dim=1), torch.stack(vs, dim=1)

    return SingleHeads()


def make(
    blocks: int,
    form: str,
    options: dict[str, Any],
    outlier: float,
    sizes: dict[str, int],
) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """The module, and inputs for it: all to calibrate with, the last to try.

    outlier: by how much a few channels of the keys are larger than the others.
    """
    from mmpack.examples.adder.model import AdderConfig, Layer, rotary
    from mmpack.wrappers.attention_block import AttentionBlock
    from mmpack.wrappers.cache_mask import CacheMask

    torch.manual_seed(0)
    head_dim, kv_heads, new, past = (sizes[n] for n in ("head_dim", "kv_heads", "new", "past"))
    config = AdderConfig(
        hidden=sizes["width"], heads=sizes["heads"], kv_heads=kv_heads, head_dim=head_dim, mlp=8
    )
    layers = [Layer(config).eval().requires_grad_(False) for _ in range(blocks)]
    for layer in layers:
        layer.self_attn.k_proj.weight.view(kv_heads, head_dim, -1)[:, 1] *= outlier
    made: list[nn.Module] = [AttentionBlock(y, head_dim, **options) for y in layers]
    if form == "single":
        made = [single_heads(block) for block in made]
    positions = torch.arange(past // 2, past // 2 + new)
    cos, sin = rotary(positions, head_dim)
    visible = CacheMask(nn.Identity(), past)(positions)
    plain = [AttentionBlock(y, head_dim, **options) for y in layers]

    def inputs(seed: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(seed)
        none = torch.zeros(1, kv_heads, 0, head_dim)
        all_visible = torch.ones(past, past, dtype=torch.bool)
        caches = []
        for block in plain:  # keys and values as the block itself makes them
            earlier = torch.randn(1, past, sizes["width"], generator=g)
            old_cos, old_sin = rotary(torch.arange(past), head_dim)
            _, k, v = block(earlier, old_cos, old_sin, all_visible, none, none)
            caches += [k.contiguous(), v.contiguous()]
        hidden = torch.randn(1, new, sizes["width"], generator=g)
        return hidden, cos, sin, visible, *caches

    return Blocks(made).eval(), [inputs(seed) for seed in range(5)]


def answer(
    path: Path,
    precision: str = "fp16",
    cache_bits: int = 16,
    mha2sha: Any = False,
    lower: bool = True,
    blocks: int = 1,
    form: str = "block",
    options: dict[str, Any] | None = None,
    outlier: float = 1.0,
    sizes: dict[str, int] | None = None,
    calls: int = 1,
) -> dict[str, Any]:
    """Quantize (unless fp16), lower and run; `lower` False runs what is quantized in PyTorch.
    `quantize` and `lower` are seconds of the processor, `run` of the clock: one call of `calls`."""
    torch.set_num_threads(1)
    module, inputs = make(blocks, form, options or {}, outlier, {**SMALL, **(sizes or {})})
    tried = inputs[-1]
    figures: dict[str, Any] = {"inputs": tried, "expected": module(*tried)}
    started = time.process_time()
    if precision != "fp16":
        module = _quantized(module, precision, cache_bits, inputs)
    figures["quantize"] = time.process_time() - started
    if lower:
        figures.update(_in_simulator(module, tried, precision, mha2sha, path, calls))
    else:
        figures["got"] = tuple(module(*tried))
    return figures


def _quantized(
    module: nn.Module, precision: str, cache_bits: int, calibration: list[Any]
) -> nn.Module:
    from executorch.backends.qualcomm.export_utils import make_quantizer
    from executorch.backends.qualcomm.quantizer.custom_annotation import annotate_kv_8bit
    from executorch.backends.qualcomm.quantizer.quantizer import QuantDtype
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # Not the default observer, whose moving average cuts off what few inputs reach.
    quantizer = make_quantizer(
        quant_dtype=getattr(QuantDtype, f"use_{precision}"),
        per_channel_linear=True,
        act_observer=MinMaxObserver,
        custom_annotations=(annotate_kv_8bit,) if cache_bits == 8 else (),
    )
    prepared = prepare_pt2e(
        torch.export.export(module, calibration[0], strict=False).module(), quantizer
    )
    for call in calibration:
        prepared(*call)
    return convert_pt2e(prepared)


def _in_simulator(
    module: nn.Module, tried: Any, precision: str, mha2sha: Any, path: Path, calls: int
) -> dict[str, Any]:
    from executorch.runtime import Runtime

    from mmpack.multimethod.targets import BACKENDS

    qnn = BACKENDS["qnn"]
    options = qnn.options({"soc": "SM8750", "precision": precision, "mha2sha": mha2sha})
    started = time.process_time()
    program = torch.export.export(module, tried, strict=False).run_decompositions({})
    qnn.prepare(program, "forward", options)
    lowered = qnn.edge(program, "forward", options).to_executorch()
    lowering = time.process_time() - started
    path.write_bytes(lowered.buffer)
    runtime = Runtime.get()
    for name in ("libQnnSystem.so", "libQnnHtp.so"):
        ctypes.CDLL(os.path.join(os.environ["LIBRARIES"], name))
    method = runtime.load_program(path).load_method("forward")
    got = tuple(method.execute(tried))
    started = time.perf_counter()
    for _ in range(calls):
        method.execute(tried)
    running = (time.perf_counter() - started) / calls
    return {"got": got, "lower": lowering, "run": running, "size": path.stat().st_size}


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    requests = json.loads(sys.argv[1])
    if any(request.get("calls") for request in requests):  # figures without the time of imports
        answer(folder / "warm.pte", precision="16a4w")
    answers = [answer(folder / f"{i}.pte", **request) for i, request in enumerate(requests)]
    torch.save(answers, folder / "answers.pt")
