"""Tokens to vectors."""

from torch import Tensor, nn


class Embedding(nn.Module):
    """A token embedding, with an input called `tokens`."""

    def __init__(self, embed_tokens: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, S] int64 -> [B, S, hidden]."""
        hidden: Tensor = self.embed_tokens(tokens)
        return hidden
