"""Cross-branch interaction (PIIP paper, section 3.2): neighbouring branches attend to each other, both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from piip.backbone.config import InteractionConfig
from piip.by_size import BySize
from piip.ops import MSDeformAttn
from piip.precision import full_precision


class ConvFFN(nn.Module):
    """Feed-forward network with a 3x3 depthwise convolution between its linear layers."""

    def __init__(self, *, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.fc1(x)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


class DenseCrossAttention(nn.Module):
    """Ordinary multi-head cross-attention of every query cell to every cell of the other branch."""

    def __init__(self, *, dim: int, source_dim: int, config: InteractionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(source_dim, dim, bias=False)
        self.v = nn.Linear(source_dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """query (B, H, W, C), source (B, H', W', C') -> (B, H, W, C)."""
        q, k, v = (
            linear(x).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, M, L, D)
            for linear, x in ((self.q, query), (self.k, source), (self.v, source))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2).view(query.shape))


class DeformableCrossAttention(nn.Module):
    """Deformable attention (Zhu et al., 2021) from a branch's cells to a few points around them in the other's map."""

    def __init__(self, *, dim: int, source_dim: int, config: InteractionConfig) -> None:
        super().__init__()
        self.mixed_precision = config.mixed_precision
        self.deform = MSDeformAttn(
            d_model=dim,
            n_levels=1,
            n_heads=config.num_heads,
            n_points=config.points,
            ratio=config.value_ratio,
            d_feat=source_dim,
        )

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """query (B, H, W, C), source (B, H', W', C') -> (B, H, W, C)."""
        if self.mixed_precision:
            return self._attend(query, source)
        with full_precision(query):
            return self._attend(query.float(), source.float())

    def _attend(self, query: Tensor, source: Tensor) -> Tensor:
        reference = cell_centres(query, query.shape[1], query.shape[2])
        shapes = [(source.shape[1], source.shape[2])]
        return self.deform(query.flatten(1, 2), reference, source.flatten(1, 2), shapes).view(query.shape)


def _cell_centres(like: Tensor, height: int, width: int) -> Tensor:
    """Centres of the cells of a map, as (1, H * W, 1, 2) normalised (x, y) in [0, 1], float32."""
    y = (torch.arange(height, dtype=torch.float32, device=like.device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=like.device) + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x, grid_y), dim=-1).view(1, -1, 1, 2)


cell_centres = BySize(_cell_centres, limit=256)


class CrossBranchAttention(nn.Module):
    """One direction of an interaction: what one branch takes from its neighbour.

    `x + gamma * attention(norm(x), norm(project(source)))`, then `+ ffn_gamma * ffn(norm(x))`. Both gains start at
    zero, so that training begins from the pretrained branches.
    """

    def __init__(self, *, dim: int, source_dim: int, config: InteractionConfig) -> None:
        super().__init__()
        make_norm = partial(nn.LayerNorm, eps=1e-6) if config.norm == "layer" else nn.Identity
        self.proj = nn.Linear(source_dim, dim) if config.projection else nn.Identity()
        source_dim = dim if config.projection else source_dim
        self.query_norm = make_norm(dim)
        self.source_norm = make_norm(source_dim)
        make_attention = DeformableCrossAttention if config.attention == "deformable" else DenseCrossAttention
        self.attn = make_attention(dim=dim, source_dim=source_dim, config=config)
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.ffn: ConvFFN | None = None
        if config.ffn_ratio:
            self.ffn_norm = make_norm(dim)
            self.ffn = ConvFFN(dim=dim, hidden=int(dim * config.ffn_ratio))
            self.ffn_gamma = nn.Parameter(torch.zeros(dim))
            self.drop_path = DropPath(config.drop_path)
        self.apply(_init_weights)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """x (B, H, W, C), the neighbour's map (B, H', W', C') -> (B, H, W, C)."""
        source = self.source_norm(self.proj(source))
        x = torch.addcmul(x, self.gamma, self.attn(self.query_norm(x), source))
        if self.ffn is not None:
            x = torch.addcmul(x, self.ffn_gamma, self.drop_path(self.ffn(self.ffn_norm(x))))
        return x


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, MSDeformAttn):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class InteractionUnit(nn.Module):
    """A finer and the next coarser branch exchange features; both see the other as it was before the exchange."""

    def __init__(self, *, fine_dim: int, coarse_dim: int, config: InteractionConfig) -> None:
        super().__init__()
        self.to_fine = CrossBranchAttention(dim=fine_dim, source_dim=coarse_dim, config=config)
        self.to_coarse = CrossBranchAttention(dim=coarse_dim, source_dim=fine_dim, config=config)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, H, W, C) of the branches' own sizes -> the same two, updated."""
        return self.to_fine(fine, coarse), self.to_coarse(coarse, fine)


class Interaction(nn.Module):
    """Units between all neighbours, finest pair first, each seeing what the one before has written.

    dims: channels of each branch's map, finest first.
    """

    def __init__(self, *, dims: Sequence[int], config: InteractionConfig) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            InteractionUnit(fine_dim=fine, coarse_dim=coarse, config=config) for fine, coarse in pairwise(dims)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map (B, H, W, C) per branch, finest first -> the same, updated."""
        maps = list(maps)
        for index, unit in enumerate(self.units):
            maps[index], maps[index + 1] = unit(maps[index], maps[index + 1])
        return maps
