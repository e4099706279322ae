"""The encoder of DINO: deformable attention (Zhu et al., 2021) from every cell of a pyramid to all of its maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.heads.deformable.maps import Maps
from piip.ops import MSDeformAttn


class FeedForward(nn.Module):
    """Two layers, with a residual connection."""

    def __init__(self, *, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        return x + self.fc2(F.relu(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Every cell looks at a few places in all maps."""

    def __init__(self, *, dim: int, levels: int, num_heads: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.attn = MSDeformAttn(dim, levels, num_heads, points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim=dim, hidden=ffn_dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, maps: Maps) -> Tensor:
        """Tokens (B, S, C) -> tokens; references: (B, S, L, 2), where each token lies in every map."""
        looked_up = self.attn(x + positions, references, x, maps.shapes, input_padding_mask=maps.padding)
        return self.norm2(self.ffn(self.norm1(x + looked_up)))


class Encoder(nn.Module):
    """checkpoint_activations: keep only the tokens between the layers for the backward pass, and compute again."""

    def __init__(self, layers: Sequence[EncoderLayer], *, checkpoint_activations: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, maps: Maps, positions: Tensor) -> Tensor:
        """Memory (B, S, C) of the maps' tokens; positions (B, S, C) are added to what asks, not to what is read."""
        references = maps.centres[:, :, None] * maps.ratios[:, None]
        x = maps.tokens
        for layer in self.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = cast("Tensor", checkpoint(layer, x, positions, references, maps, use_reentrant=False))
            else:
                x = layer(x, positions, references, maps)
        return x
