"""The multi-scale deformable encoder (Zhu et al., 2021): all cells of a pyramid attend to a few points of all maps."""

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

    def __init__(self, *, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        return x + self.fc2(F.relu(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Every token attends to a few points in all maps, then a feed-forward network follows; both are normed behind."""

    def __init__(self, *, dim: int, levels: int, num_heads: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.attn = MSDeformAttn(dim, levels, num_heads, points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim=dim, ffn_dim=ffn_dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, maps: Maps) -> Tensor:
        """Tokens (B, S, C) -> tokens; references: (B, S, L, 2), where each token lies in every map."""
        attended = self.attn(x + positions, references, x, maps.shapes, input_padding_mask=maps.padding)
        return self.norm2(self.ffn(self.norm1(x + attended)))


class Encoder(nn.Module):
    """Layers over all tokens of a pyramid.

    checkpoint_activations: keep only the tokens between the layers for the backward pass, and compute the rest again.
    """

    def __init__(self, layers: Sequence[EncoderLayer], *, checkpoint_activations: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, maps: Maps, positions: Tensor) -> Tensor:
        """Memory (B, S, C) of the maps' tokens; positions (B, S, C) are added to the queries, not to the values."""
        references = maps.centres[:, :, None] * maps.ratios[:, None]
        x = maps.tokens
        for layer in self.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = cast("Tensor", checkpoint(layer, x, positions, references, maps, use_reentrant=False))
            else:
                x = layer(x, positions, references, maps)
        return x


def initialise(part: nn.Module) -> None:
    """Uniform weights by fan-in and fan-out, except in deformable attention, which has its own."""
    for parameter in part.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in part.modules():
        if isinstance(module, MSDeformAttn):
            module.reset_parameters()
