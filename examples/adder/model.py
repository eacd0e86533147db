"""A small decoder of the Llama architecture, in plain PyTorch.

    model = adder()
    model.load_state_dict(safetensors.torch.load_file("adder.safetensors"))
    logits = model(tokens)  # [B, S] int64 -> [B, S, 256] float32

Submodules and parameters carry the names that Hugging Face gives them in Llama. There is no
cache here: every call reads the whole sequence. That makes it the reference for all that is cut
out of it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AdderConfig:
    """The sizes of the decoder."""

    hidden: int = 96
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    mlp: int = 256
    vocab: int = 256
    max_length: int = 256
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv_heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"rotary needs an even head_dim, not {self.head_dim}")


def rotary(positions: Tensor, head_dim: int = 16, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles: [S] -> [S, head_dim], [S, head_dim].

    Channel i and channel i + head_dim / 2 are one pair, so the angles appear twice in a row.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = positions.to(torch.float32)[:, None] * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every channel pair of x by its angle: [..., S, D], [S, D], [S, D] -> [..., S, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class RMSNorm(nn.Module):
    """Scale each vector to a root mean square of one, then by a learned weight."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, hidden] -> [B, S, hidden]."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a key and value head."""

    def __init__(self, config: AdderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, hidden], [S, head_dim], [S, head_dim] -> [B, S, hidden]."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        index = torch.arange(length)
        scores = scores.masked_fill(index[None, :] > index[:, None], float("-inf"))
        mixed = scores.softmax(dim=-1) @ v
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    """SwiGLU: one projection gates the other."""

    def __init__(self, config: AdderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, hidden] -> [B, S, hidden]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention, then the MLP, each behind a norm and added to its input."""

    def __init__(self, config: AdderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, S, hidden], [S, head_dim], [S, head_dim] -> [B, S, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Adder(nn.Module):
    """The decoder: bytes to the logits of the byte that follows each of them."""

    def __init__(self, config: AdderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S] int64 -> [B, S, vocab] float32."""
        positions = torch.arange(tokens.shape[1])
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def adder(**overrides: Any) -> nn.Module:
    """An untrained decoder in eval mode; `overrides` replace fields of `AdderConfig`."""
    return Adder(AdderConfig(**overrides)).eval()
