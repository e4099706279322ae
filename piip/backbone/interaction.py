"""Cross-branch interaction (PIIP paper, section 3.2): neighbouring branches attend to each other, both ways."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

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

    def __init__(self, *, dim: int, source_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
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
    """Deformable attention (Zhu et al., 2021) from a branch's cells to a few points around them in the other's map.

    mixed_precision: false keeps its linear layers in float32 under autocast, as released.
    """

    def __init__(
        self, *, dim: int, source_dim: int, num_heads: int, points: int, value_ratio: float, mixed_precision: bool
    ) -> None:
        super().__init__()
        self.mixed_precision = mixed_precision
        self.deform = MSDeformAttn(
            d_model=dim, n_levels=1, n_heads=num_heads, n_points=points, ratio=value_ratio, d_feat=source_dim
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

    def __init__(
        self,
        *,
        dim: int,
        source_dim: int,
        attention: str,
        num_heads: int,
        points: int,
        value_ratio: float,
        ffn_ratio: float,
        projection: bool,
        norm: str,
        drop_path: float,
        mixed_precision: bool,
    ) -> None:
        super().__init__()
        make_norm = partial(nn.LayerNorm, eps=1e-6) if norm == "layer" else nn.Identity
        self.proj = nn.Linear(source_dim, dim) if projection else nn.Identity()
        source_dim = dim if projection else source_dim
        self.query_norm = make_norm(dim)
        self.source_norm = make_norm(source_dim)
        self.attn: nn.Module
        if attention == "deformable":
            self.attn = DeformableCrossAttention(
                dim=dim,
                source_dim=source_dim,
                num_heads=num_heads,
                points=points,
                value_ratio=value_ratio,
                mixed_precision=mixed_precision,
            )
        else:
            self.attn = DenseCrossAttention(dim=dim, source_dim=source_dim, num_heads=num_heads)
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.ffn: ConvFFN | None = None
        if ffn_ratio:
            self.ffn_norm = make_norm(dim)
            self.ffn = ConvFFN(dim=dim, hidden=int(dim * ffn_ratio))
            self.ffn_gamma = nn.Parameter(torch.zeros(dim))
            self.drop_path = DropPath(drop_path)
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

    def __init__(self, *, to_fine: CrossBranchAttention, to_coarse: CrossBranchAttention) -> None:
        super().__init__()
        self.to_fine = to_fine
        self.to_coarse = to_coarse

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, H, W, C) of the branches' own sizes -> the same two, updated."""
        return self.to_fine(fine, coarse), self.to_coarse(coarse, fine)


class Interaction(nn.Module):
    """Units between all neighbours, finest pair first, each seeing what the one before has written."""

    def __init__(self, units: list[InteractionUnit]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map (B, H, W, C) per branch, finest first -> the same, updated."""
        maps = list(maps)
        for index, unit in enumerate(self.units):
            maps[index], maps[index + 1] = unit(maps[index], maps[index + 1])
        return maps
