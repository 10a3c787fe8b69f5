"""A small vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), written to be read.

Blocks normalise before attention and before the MLP; positions are learned; there is no BatchNorm, so the result does not
depend on how a batch is cut into micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrun.errors import ComponentError


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Images (N, channels, image_size, image_size), float -> logits (N, classes)."""

    def __init__(
        self, image_size: int, patch_size: int, channels: int, classes: int, width: int, depth: int, heads: int,
        dropout: float, pool: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pool = pool
        patches = (image_size // patch_size) ** 2
        self.patch = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, width)) if pool == "cls" else None
        self.positions = nn.Parameter(torch.zeros(1, patches + (pool == "cls"), width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier as in the authors' code; the head starts at zero, so the first loss is log(classes)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # As large as the patches' embeddings. The authors' 0.02 is for long training: on digits it costs most of a minute's run.
        nn.init.normal_(self.positions, std=0.5)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        x = self.drop(x + self.positions)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.head(x[:, 0] if self.pool == "cls" else x.mean(dim=1))
        return logits

    def no_weight_decay(self) -> set[str]:
        """Positions and the class token are 3-D and yet no weights of a linear map."""
        return {"positions", "cls"} if self.cls is not None else {"positions"}


def build(
    image_size: int,
    patch_size: int,
    channels: int,
    classes: int,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    pool: str = "mean",
) -> nn.Module:
    """A ViT over square images; `pool` is `mean` or `cls`; `dropout` acts on embeddings, attention and both branches."""
    if image_size % patch_size:
        raise ComponentError(f"models/vit: patch_size {patch_size} does not divide image_size {image_size}.")
    if width % heads:
        raise ComponentError(f"models/vit: heads {heads} does not divide width {width}.")
    if pool not in ("mean", "cls"):
        raise ComponentError(f"models/vit: pool is `mean` or `cls` (got {pool!r}).")
    return ViT(image_size, patch_size, channels, classes, width, depth, heads, dropout, pool)
