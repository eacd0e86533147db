"""ExecuTorch's own fused attention for CPUs, `llama::custom_sdpa`.

It goes over keys in blocks, so scores are never stored whole, and shares heads of keys without
copies. The runtime has it from the library that PyTorch has it from (`runtime/kernels.py`).

Source: ExecuTorch 1.5, `extension/llm/custom_ops/op_sdpa_impl.h`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpack.multimethod.errors import ModelError
from mmpack.wrappers._scores import Scores
from mmpack.wrappers._visible import visible


class CustomSdpa(nn.Module):
    """Attention by `llama::custom_sdpa`, which scales scores and cannot cap them.

    Its own causal mask holds for consecutive positions only, and it would read, or abort the
    process, where a key is missing; so it is given a mask, but for a single query that sees all
    keys up to its own, which is told how many these are.
    """

    def __init__(self, scores: Scores, window: int | None) -> None:
        super().__init__()
        if scores.cap is not None:
            raise ModelError(
                f"scores are capped here (attn_logit_softcapping: {scores.cap}), which custom_sdpa "
                "cannot do; leave `kernel` out"
            )
        self.scaling = scores.scaling
        self.window = window

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """q [B, S, heads, head_dim], k and v [B, T, kv_heads, head_dim], positions [S] int64
        -> [B, S, heads * head_dim]. mask: that of `visible`, if there is one already."""
        scale = q.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        exporting = torch.compiler.is_exporting()
        if exporting:  # here, since it imports torch._inductor, and nothing else wants the operator
            import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401, it registers it
        if exporting and self.needs_no_mask(q.shape[1]):
            # As far as there are keys: the operator does not look whether there are.
            last = positions[0].clamp(0, k.shape[1] - 1).item()
            fused: Tensor = torch.ops.llama.custom_sdpa(q, k, v, last, None, 0.0, True, scale)
            return fused.flatten(2)
        if mask is None:
            mask = visible(positions, k.shape[1], self.window)
        if exporting:
            fused = torch.ops.llama.custom_sdpa(q, k, v, 0, mask, 0.0, False, scale)
            return fused.flatten(2)
        # What the operator is held against must not be itself; nor is it fit for eager PyTorch,
        # where it prints a line for each call.
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask.to(q.dtype), scale=scale, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2)

    def needs_no_mask(self, new: int) -> bool:
        """Whether it is enough to say how many keys there are to see, for so many queries."""
        return new == 1 and self.window is None
