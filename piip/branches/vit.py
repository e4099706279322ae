"""The plain vision transformer branch: DeiT (Touvron et al., 2021) and DeiT III, with window or global attention."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import Branch
from piip.features import FeatureSpec

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Attention(nn.Module):
    """Multi-head self-attention over the whole map, or inside windows of window_size x window_size tokens."""

    def __init__(self, *, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if not self.window_size:
            return self.proj(self._attend(x))
        height, width = x.shape[1:3]
        # The padding enters before qkv, so padded tokens carry the qkv bias and take part in the softmax, unmasked:
        # that is what the released checkpoints were trained with.
        x = F.pad(x, (0, 0, 0, -width % self.window_size, 0, -height % self.window_size))
        x = merge_windows(self._attend(split_windows(x, self.window_size)), x.shape)
        return self.proj(x[:, :height, :width])

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, M, L, D)
        x = F.scaled_dot_product_attention(q, k, v)
        return x.transpose(1, 2).reshape(batch, height, width, dim)


def split_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B * H/size * W/size, size, size, C); H and W are multiples of size."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // size, size, width // size, size, dim)
    return x.transpose(2, 3).reshape(-1, size, size, dim)


def merge_windows(windows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of split_windows; shape: the (B, H, W, C) that was split."""
    batch, height, width, dim = shape
    size = windows.shape[1]
    x = windows.view(batch, height // size, width // size, size, size, dim)
    return x.transpose(2, 3).reshape(shape)


class Block(nn.Module):
    """Pre-norm transformer block with layer scale and stochastic depth."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        window_size: int,
        layer_scale: float | None,
        drop_path: float,
        checkpoint_activations: bool,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim=dim, num_heads=num_heads, window_size=window_size)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Non-overlapping patches; remainder pixels at the bottom and right are dropped."""

    def __init__(self, *, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/patch_size, W/patch_size, C)."""
        return self.proj(images).permute(0, 2, 3, 1)


class ViT(Branch):
    """A vision transformer without class token and final norm; parameter names are timm's."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        pretrain_size: int = 224,
        window_size: int = 0,
        global_blocks: tuple[int, ...] = (),
        layer_scale: float | None = 1.0,
        drop_path: float = 0.0,
        drop_path_schedule: str = "constant",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.pretrain_grid = pretrain_size // patch_size
        self.patch_embed = PatchEmbed(dim=embed_dim, patch_size=patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.pretrain_grid**2, embed_dim))
        linear = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        rates = linear if drop_path_schedule == "linear" else [drop_path] * depth
        self.blocks = nn.ModuleList(
            Block(
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                window_size=0 if index in global_blocks else window_size,
                layer_scale=layer_scale,
                drop_path=rates[index],
                checkpoint_activations=checkpoint_activations,
            )
            for index in range(depth)
        )
        self.specs = [FeatureSpec(embed_dim, patch_size)] * depth
        self._init_weights()

    def _init_weights(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):  # as a linear layer over the pixels of a patch (LeCun normal)
                trunc_normal_(module.weight, std=math.sqrt(1 / module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, H/patch_size, W/patch_size, C), position embedding added."""
        x = self.patch_embed(images)
        return x + resize_pos_embed(self.pos_embed, self.pretrain_grid, (x.shape[1], x.shape[2])).to(x.dtype)

    def layer_of(self, parameter: str) -> int | None:
        """0 for the patch and position embeddings, i + 1 for block i."""
        parts = parameter.split(".")
        return int(parts[1]) + 1 if parts[0] == "blocks" else 0


def resize_pos_embed(pos_embed: Tensor, grid: int, size: tuple[int, int]) -> Tensor:
    """Bicubic resize in float32 of a learned (1, grid * grid, C) position embedding to (1, H, W, C)."""
    x = pos_embed.float().view(1, grid, grid, -1)
    if size == (grid, grid):
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
    return x.permute(0, 2, 3, 1)
