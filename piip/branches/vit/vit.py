"""The plain vision transformer branch, with window or global attention.

By its options it is DeiT (Touvron et al., 2021), DeiT III, AugReg (Steiner et al., 2021), MAE (He et al., 2022), DINOv2
(Oquab et al., 2023), BEiTv2 (Peng et al., 2022), Uni-Perceiver (Zhu et al., 2022) or InternViT-6B (Chen et al., 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, PatchEmbed, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import Branch, Tokens
from piip.branches.vit.config import ViTConfig
from piip.branches.vit.pretrained import ORIGINS, fit_pretrained
from piip.by_size import BySize
from piip.features import FeatureSpec


class Attention(nn.Module):
    """Multi-head self-attention over the whole map, or inside windows of window_size x window_size tokens.

    window_size: 0 attends over the whole map.
    """

    def __init__(self, config: ViTConfig, *, window_size: int) -> None:
        super().__init__()
        dim, heads = config.embed_dim, config.num_heads
        self.num_heads = heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias == "all")
        self.q_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias == "qv" else None
        self.q_norm = make_norm(config) if config.qk_norm else None
        self.k_norm = make_norm(config) if config.qk_norm else None
        relative = config.position == "relative"
        self.position_bias = WindowPositionBias(size=window_size, num_heads=heads) if relative else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if not self.window_size:
            return self.proj(self._attend(x))
        height, width = x.shape[1:3]
        right, bottom = -width % self.window_size, -height % self.window_size
        if right or bottom:
            # The padding enters before qkv, so padded tokens carry the qkv bias and take part in the softmax, unmasked:
            # that is what the released checkpoints were trained with.
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        windows = split_windows(x, self.window_size, dtype=self.qkv.weight.dtype)
        x = merge_windows(self._attend(windows), x.shape)
        return self.proj(x[:, :height, :width])

    def fold(self) -> None:
        """Gives qkv the bias that it is called with, as a constant; for inference."""
        bias = self._qkv_bias()
        if bias is not None:
            self.qkv.bias = nn.Parameter(bias.detach(), requires_grad=False)
            self.q_bias = self.v_bias = None

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        bias = self._qkv_bias()
        qkv = self.qkv(x) if bias is None else F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(batch, height * width, 3, dim).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))  # each (B, M, L, D)
        offset_bias = None if self.position_bias is None else self.position_bias(v.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=offset_bias)
        return x.transpose(1, 2).reshape(batch, height, width, dim)

    def _qkv_bias(self) -> Tensor | None:
        """The biases of queries and values, with zeros for the keys between them; None if qkv has its own or none."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))


class WindowPositionBias(nn.Module):
    """A bias per head for every offset between two tokens of a window (Liu et al., 2021, "Swin"; BEiT without cls)."""

    def __init__(self, *, size: int, num_heads: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, num_heads))
        self._expand: Callable[..., Tensor] = expand_offsets

    def forward(self, dtype: torch.dtype) -> Tensor:
        """(M, L, L) in a dtype, for the L = size * size tokens of a window."""
        return self._expand(self.table, self.size, dtype)

    def fold(self) -> None:
        """Expands the table once; for inference."""
        self._expand = BySize(expand_offsets, limit=1)


def expand_offsets(table: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """A value for each offset (dy, dx), in the rows of a table ((2 * size - 1)^2, M) -> for each pair of tokens.

    Returns (M, L, L) in a dtype, L = size * size. The offset from token (v, u) to (y, x) is (y - v, x - u), and its row
    counts from (1 - size, 1 - size): with v and u counted backwards, a sliding window of the table. Its gradient is
    then a sum in a fixed order, where that of an index would be sorted first.
    """
    offsets = 2 * size - 1
    pairs = table.T.reshape(-1, offsets, offsets).unfold(1, size, 1).unfold(2, size, 1)  # (M, y, x, v, u)
    return pairs.flip(3, 4).reshape(-1, size * size, size * size).to(dtype)


def split_windows(x: Tensor, size: int, *, dtype: torch.dtype) -> Tensor:
    """(B, H, W, C) -> (B * H/size * W/size, size, size, C) in a dtype; H and W are multiples of size."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // size, size, width // size, size, dim).transpose(2, 3)
    return x.to(dtype, memory_format=torch.contiguous_format).reshape(-1, size, size, dim)  # one copy does both


def merge_windows(windows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of split_windows; shape: the (B, H, W, C) that was split."""
    batch, height, width, dim = shape
    size = windows.shape[1]
    x = windows.view(batch, height // size, width // size, size, size, dim)
    return x.transpose(2, 3).reshape(shape)


class Block(nn.Module):
    """Pre-norm transformer block with layer scale and stochastic depth."""

    def __init__(self, config: ViTConfig, *, window_size: int, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.checkpoint_activations = config.checkpoint_activations
        self.norm1 = make_norm(config)
        self.attn = Attention(config, window_size=window_size)
        self.ls1 = make_scale(config)
        self.norm2 = make_norm(config)
        gelu = nn.GELU if config.activation == "gelu" else partial(nn.GELU, approximate="tanh")
        self.mlp = Mlp(dim, hidden_features=int(dim * config.mlp_ratio), act_layer=gelu)
        self.ls2 = make_scale(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = self._add(x, self.ls1, self.attn(self.norm1(x)))
        return self._add(x, self.ls2, self.mlp(self.norm2(x)))

    def _add(self, x: Tensor, scale: nn.Module, y: Tensor) -> Tensor:
        """x + drop_path(scale(y)), in one operator where there is nothing to drop."""
        drops = self.training and self.drop_path.drop_prob
        if drops or not isinstance(scale, LayerScale):
            return x + self.drop_path(scale(y))
        return torch.addcmul(x, scale.gamma, y)


class ViT(Branch):
    """A vision transformer without final norm; parameter names are timm's."""

    origins = ORIGINS

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pretrain_grid = config.pretrain_size // config.patch_size
        self.patch_embed = PatchEmbed(None, patch_size=config.patch_size, embed_dim=dim, output_fmt="NHWC")
        positions = nn.Parameter(torch.zeros(1, self.pretrain_grid**2, dim))
        self.pos_embed = positions if config.position == "absolute" else None
        self.frame_embed = nn.Parameter(torch.zeros(1, 1, dim)) if config.frame_embed else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self._resize_pos_embed: Callable[..., Tensor] = resize_pos_embed
        self.embed_norm = make_norm(config) if config.embed_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                config,
                window_size=0 if index in config.global_blocks else config.window_size,
                drop_path=drop_path,
            )
            for index, drop_path in enumerate(drop_path_rates(config))
        )
        self.specs = [FeatureSpec(dim, config.patch_size)] * config.depth
        self._init_weights()

    def _init_weights(self) -> None:
        for embedding in (self.pos_embed, self.frame_embed, self.cls_token):
            if embedding is not None:
                trunc_normal_(embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):  # as a linear layer over the pixels of a patch (LeCun normal)
                trunc_normal_(module.weight, std=math.sqrt(1 / module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def units(self) -> list[nn.Module]:
        """The transformer blocks."""
        return list(self.blocks)

    def embed(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, W) -> (B, H/patch_size, W/patch_size, C), position embedding added.

        Remainder pixels at the bottom and right are dropped.
        """
        x = self.patch_embed(images).contiguous()  # else every norm would copy it
        if self.pos_embed is not None:
            x = x + self._resize_pos_embed(self.pos_embed, self.pretrain_grid, (x.shape[1], x.shape[2]), x.dtype)
        if self.frame_embed is not None:
            x = x + self.frame_embed.to(x.dtype)
        x = self.embed_norm(x)
        if self.cls_token is None:
            return Tokens(x)
        return Tokens(x, self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        """Applies blocks start to stop - 1 to a feature map (B, H, W, C); its shape stays."""
        # With a class token, which needs global attention, blocks compute on one row, since the grid does not matter.
        y = x.map if x.prefix is None else x.row()[:, None]
        for block in self.blocks[start:stop]:
            y = block(y)
        return Tokens(y) if x.prefix is None else x.replace_row(y[:, 0])

    def fold(self) -> None:
        """Keeps the position embedding at the latest sizes; for inference."""
        self._resize_pos_embed = BySize(resize_pos_embed, limit=8)

    def fit_pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As of `piip.branches.vit.pretrained`: positions, patches and biases are resampled to the branch's grids."""
        return fit_pretrained(tensors, self.state_dict())

    def layer_of(self, parameter: str) -> int | None:
        """0 for the patch and position embeddings, i + 1 for block i."""
        parts = parameter.split(".")
        return int(parts[1]) + 1 if parts[0] == "blocks" else 0


def make_norm(config: ViTConfig) -> nn.Module:
    """A norm over the width of a branch."""
    return (nn.RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.embed_dim, eps=config.norm_eps)


def make_scale(config: ViTConfig) -> nn.Module:
    """The gains of a residual, where a branch has them."""
    if config.layer_scale is None:
        return nn.Identity()
    return LayerScale(config.embed_dim, init_values=config.layer_scale)


def drop_path_rates(config: ViTConfig) -> list[float]:
    """The stochastic depth rate of every block."""
    if config.drop_path_schedule == "constant":
        return [config.drop_path] * config.depth
    return [config.drop_path * index / max(config.depth - 1, 1) for index in range(config.depth)]


def resize_pos_embed(pos_embed: Tensor, grid: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Bicubic resize in float32 of a learned (1, grid * grid, C) position embedding to (1, H, W, C) in a dtype."""
    x = pos_embed.float().view(1, grid, grid, -1)
    if size != (grid, grid):
        x = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return x.to(dtype)
