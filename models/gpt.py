"""A decoder-only transformer over tokens or bytes (GPT-2: Radford et al. 2019), with rotary or learned positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrun.errors import ComponentError


def rotary_table(context: int, size: int) -> Tensor:
    """(2, context, size): cosine and sine of the angle of each position and channel (Su et al. 2021, arXiv:2104.09864)."""
    frequency = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency)
    return torch.stack([torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns (N, heads, T, size) by its positions, in float32 whatever `x` is: bfloat16 cannot tell position 257 from 256."""
    cos, sin = table[0, : x.shape[2]], table[1, : x.shape[2]]
    left, right = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-right, left], dim=-1) * sin).type_as(x)


class Attention(nn.Module):
    """Causal multi-head self-attention: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), table))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Tokens (N, T) with T <= context -> logits (N, T, vocab); the task shifts them against the labels."""

    table: Tensor | None

    def __init__(
        self, vocab: int, context: int, width: int, depth: int, heads: int, dropout: float, positions: str, tied: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tok = nn.Embedding(vocab, width)
        self.pos = nn.Embedding(context, width) if positions == "learned" else None
        # Not persistent: it follows from the arguments, so it has no place in a checkpoint.
        self.register_buffer("table", rotary_table(context, width // heads) if self.pos is None else None, persistent=False)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self._initialise(depth)
        if tied:
            self.lm_head.weight = self.tok.weight

    def _initialise(self, depth: int) -> None:
        """GPT-2: normal with 0.02; what adds to the residual stream is scaled down by the number of such additions."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith((".attention.out", ".mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """`labels` are accepted and not used: the loss is the task's, and whole dict batches fit as they are."""
        x = self.tok(input_ids)
        if self.pos is not None:
            x = x + self.pos.weight[: input_ids.shape[1]]
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, self.table)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def build(
    vocab: int = 256,
    context: int = 256,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    positions: str = "rotary",
    tied: bool = True,
) -> nn.Module:
    """A GPT; `positions` is `rotary` or `learned`; with `tied` the output layer is the token embedding itself."""
    if positions not in ("rotary", "learned"):
        raise ComponentError(f"models/gpt: positions is `rotary` or `learned` (got {positions!r}).")
    if width % heads or (positions == "rotary" and width // heads % 2):
        raise ComponentError(f"models/gpt: width {width} over {heads} heads must be a whole number, even with rotary positions.")
    return GPT(vocab, context, width, depth, heads, dropout, positions, tied)
