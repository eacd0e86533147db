"""Attention written in many ways, which all are the same to PyTorch and not to a rewrite of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEAD, PAST = 24, 8, 6


class Attention(nn.Module):
    """Projections, rotary embedding, cache, and attention of grouped queries, each in a form of its
    own; see `FORMS`."""

    def __init__(
        self,
        project: str = "linear",
        rotary: str = "halves",
        group: str = "expand",
        cache: str = "rows",
        norm: str = "",
        heads: int = 4,
        kv_heads: int = 2,
        tokens: int = 4,
        bias: bool = True,
        gives: str = "all",
    ) -> None:
        super().__init__()
        self.project, self.rotary, self.group, self.cache = project, rotary, group, cache
        self.norm, self.gives, self.tokens = norm, gives, tokens
        self.counts = [heads, kv_heads, kv_heads]
        self.rows = [count * HEAD for count in self.counts]
        if project in ("packed", "packed in heads"):
            self.qkv = nn.Linear(WIDTH, sum(self.rows), bias)
        elif project in ("image", "image reshaped"):
            self.qkv = nn.ModuleList([nn.Conv2d(WIDTH, n, 1, bias=bias) for n in self.rows])
        else:
            self.qkv = nn.ModuleList([nn.Linear(WIDTH, n, bias) for n in self.rows])
        self.out = nn.Linear(heads * HEAD, WIDTH, bias)
        self.scale = nn.Parameter(torch.rand(self.rows[0] if norm == "all heads" else HEAD) + 0.5)

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """hidden [1, S, WIDTH]; cos, sin [S, HEAD]; mask [S, T]; and with a cache its k and v."""
        g = torch.Generator().manual_seed(seed)
        angles = torch.rand(self.tokens, HEAD, generator=g)
        past = PAST if self.cache else 0
        hidden = torch.randn(1, self.tokens, WIDTH, generator=g)
        visible = torch.rand(self.tokens, past + self.tokens, generator=g) < 0.7
        mask = torch.where(visible, 0.0, -50.0)
        k, v = torch.randn(2, 1, self.counts[1], past, HEAD, generator=g)
        k = k.transpose(2, 3).contiguous() if self.cache == "columns" else k
        return (hidden, angles.cos(), angles.sin(), mask, *((k, v) if past else ()))

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        q, k, v = self.projected(hidden)
        q, k = self.turned(self.normed(q), cos, sin), self.turned(self.normed(k), cos, sin)
        keys, values = k, v
        if self.cache == "rows":
            keys, values = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        elif self.cache == "columns":
            keys = torch.cat([past[0], k.transpose(2, 3)], 3).transpose(2, 3)
            values = torch.cat([past[1], v], 2)
        mixed, weights = self.attended(q, keys, values, mask)
        out = self.out(mixed.transpose(1, 2).reshape(1, self.tokens, -1))
        return {"all": (hidden + out, k, v), "weights": (out, weights), "heads": (out, mixed)}[
            self.gives
        ]

    def projected(self, hidden: Tensor) -> list[Tensor]:
        """q, k, v [1, heads, S, HEAD]."""
        new = self.tokens
        if self.project == "packed":
            parts: Any = self.qkv(hidden).split(self.rows, dim=-1)
        elif self.project == "packed in heads":
            every = self.qkv(hidden).view(1, new, -1, HEAD).transpose(1, 2)
            return list(every.split(self.counts, dim=1))
        elif self.project == "packed in three":
            every = torch.cat([layer(hidden) for layer in self.qkv], -1)
            return list(every.reshape(1, new, 3, -1, HEAD).permute(2, 0, 3, 1, 4).unbind(0))
        elif self.project.startswith("image"):
            image = hidden.reshape(1, new, 1, WIDTH).transpose(1, 3)
            parts = [layer(image).permute(0, 3, 1, 2) for layer in self.qkv]
            if self.project == "image reshaped":
                parts = [part.reshape(1, new, -1) for part in parts]
        else:
            parts = [layer(hidden) for layer in self.qkv]
        views = (x.reshape(1, new, -1, HEAD) for x in parts)
        return [x.transpose(1, 2) for x in views]

    def normed(self, x: Tensor) -> Tensor:
        if self.norm == "each head":
            return F.rms_norm(x, (HEAD,), self.scale)
        if self.norm == "all heads" and x.shape[1] * HEAD == len(self.scale):
            flat = x.transpose(1, 2).flatten(2)
            flat = flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale
            return flat.view(1, self.tokens, -1, HEAD).transpose(1, 2)
        return x

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = HEAD // 2
        if self.rotary in ("stack", "strided"):
            a, b = x[..., 0::2], x[..., 1::2]
            c, s = cos[:, :half], sin[:, :half]
            if self.rotary == "stack":
                return torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)
            return torch.cat([a * c - b * s, a * s + b * c], dim=-1)
        if self.rotary == "halves":
            a, b = x[..., :half], x[..., half:]
        elif self.rotary == "chunk":
            a, b = x.chunk(2, dim=-1)
        elif self.rotary == "split":
            a, b = x.split(half, dim=-1)
        elif self.rotary == "roll":
            return x * cos + x.roll(half, dims=-1) * sin
        else:
            return x
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each head gives, [1, heads, S, HEAD], and its weights."""
        heads, kv_heads, _ = self.counts
        each = heads // kv_heads
        if self.group == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
            return mixed, mixed
        if self.group == "rows":
            q = q.reshape(1, kv_heads, each * self.tokens, HEAD)
            weights = (q @ k.mT * HEAD**-0.5 + mask.repeat(each, 1)).softmax(-1)
            return (weights @ v).reshape(1, heads, self.tokens, HEAD), weights
        if self.group == "axis":
            q, k, v = q.view(1, kv_heads, each, self.tokens, HEAD), k[:, :, None], v[:, :, None]
            weights = (q @ k.mT * HEAD**-0.5 + mask).softmax(-1)
            return (weights @ v).reshape(1, heads, self.tokens, HEAD), weights
        k, v = (self.for_all(x, each) for x in (k, v))
        if self.group == "flat":  # batch and heads in one axis, as torch.bmm wants it
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
            scores = torch.bmm(q, k.mT).view(1, heads, self.tokens, -1) * HEAD**-0.5 + mask
            weights = scores.flatten(0, 1).softmax(-1)
            return torch.bmm(weights, v).view(1, heads, self.tokens, HEAD), weights
        weights = (q @ k.mT * HEAD**-0.5 + mask).softmax(-1)
        return weights @ v, weights

    def for_all(self, x: Tensor, each: int) -> Tensor:
        """[1, kv_heads, T, HEAD] -> [1, heads, T, HEAD]."""
        _, kv_heads, length, _ = x.shape
        if self.group == "repeat_interleave":
            return x.repeat_interleave(each, dim=1)
        if self.group == "repeat":
            return x[:, :, None].repeat(1, 1, each, 1, 1).flatten(1, 2)
        if self.group == "repeat, interleaved":  # query h has the keys h % kv_heads
            return x.repeat(1, each, 1, 1)
        if self.group == "cat":
            return torch.cat([x[:, h // each : h // each + 1] for h in range(kv_heads * each)], 1)
        if self.group == "index":
            return x[:, torch.arange(kv_heads * each) // each]
        return x[:, :, None].expand(1, kv_heads, each, length, HEAD).flatten(1, 2)


PROJECTIONS = ("linear", "image", "image reshaped", "packed", "packed in heads", "packed in three")
ROTARIES = ("halves", "chunk", "split", "stack", "strided", "roll", "none")
GROUPS = ("expand", "repeat", "repeat, interleaved", "repeat_interleave", "cat", "index", "sdpa")
GROUPS += ("rows", "axis", "flat")
COUNTS = ((9, 1), (9, 3), (9, 9), (8, 2), (32, 8))

FORMS: dict[str, dict[str, Any]] = {
    **{f"projections: {p}": {"project": p} for p in PROJECTIONS},
    **{f"rotary: {r}": {"rotary": r} for r in ROTARIES},
    **{f"groups: {g}": {"group": g} for g in GROUPS},
    **{f"cache: {c or 'none'}": {"cache": c} for c in ("rows", "columns", "")},
    **{f"norm: {n}": {"norm": n} for n in ("each head", "all heads")},
    **{f"heads: {h}, {k} of keys": {"heads": h, "kv_heads": k} for h, k in COUNTS},
    "one token": {"tokens": 1},
    "no bias": {"bias": False},
    "packed, one head of keys": {"project": "packed", "kv_heads": 1},
    "gives its weights": {"gives": "weights"},
    "gives its heads": {"gives": "heads"},
}
FORMS["projections: packed in three"]["kv_heads"] = 4
"""Name -> arguments of `Attention`."""
