"""Attention inside windows for timm's attention layers, which attend globally."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn


class Grid(NamedTuple):
    """How many patches there are; a block passes it to its attention where other networks have their mask."""

    height: int
    width: int


class WindowAttention(nn.Module):
    """An attention layer of timm inside windows: global attention without the pairs of patches of different windows.

    A patch attends to the patches of its window and to all prefix tokens, a prefix token to everything, so that the
    class token and the registers keep their part. Windows begin at the top left; those at the other borders are
    smaller where size does not divide the grid. Rotary positions are those of the whole grid.

    attn: the layer whose parameters, under the same names, are taken over. size: side of a window in patches.
    prefix: the number of prefix tokens.
    """

    def __init__(self, attn: Any, *, size: int, prefix: int) -> None:
        super().__init__()
        self.qkv: Any = attn.qkv  # None in layers with three projections
        self.q_proj: Any = getattr(attn, "q_proj", None)
        self.k_proj: Any = getattr(attn, "k_proj", None)
        self.v_proj: Any = getattr(attn, "v_proj", None)
        self.q_bias: nn.Parameter | None = getattr(attn, "q_bias", None)
        self.v_bias: nn.Parameter | None = getattr(attn, "v_bias", None)
        self.q_norm: Any = attn.q_norm
        self.k_norm: Any = attn.k_norm
        self.norm: Any = attn.norm
        self.gate: Any = attn.gate
        self.proj: Any = attn.proj
        self.proj_drop: Any = attn.proj_drop
        self.size, self.prefix = size, prefix
        self.num_heads: int = attn.num_heads
        self.rotate_half: bool = getattr(attn, "rotate_half", False)

    def forward(self, x: Tensor, *, attn_mask: Grid, rope: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, P + H * W, C) -> the same; attn_mask: H and W; rope: sine and cosine of all patches (..., H * W, 2 D)."""
        q, k, v = self._project(x)
        if rope is not None:
            q, k = self._rotate(q, rope).to(v.dtype), self._rotate(k, rope).to(v.dtype)
        count = self.prefix
        patches = self._attend_inside(q[:, :, count:], k, v, attn_mask)
        if count:
            patches = torch.cat((F.scaled_dot_product_attention(q[:, :, :count], k, v), patches), dim=2)
        out = self.norm(patches.transpose(1, 2).flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, M, L, D); there may be fewer keys and values than heads, which share them."""
        if self.qkv is not None:
            qkv = self.qkv(x)
            if self.q_bias is not None and self.v_bias is not None:
                qkv = qkv + torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
            q, k, v = qkv.chunk(3, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        width = q.shape[-1] // self.num_heads
        q, k, v = (y.unflatten(-1, (-1, width)).transpose(1, 2) for y in (q, k, v))
        shared = self.num_heads // k.shape[1]
        q, k = self.q_norm(q), self.k_norm(k)
        return (
            q,
            k.repeat_interleave(shared, 1) if shared > 1 else k,
            v.repeat_interleave(shared, 1) if shared > 1 else v,
        )

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        patches = apply_rot_embed_cat(x[:, :, self.prefix :], rope, half=self.rotate_half)
        return torch.cat((x[:, :, : self.prefix], patches), dim=2)

    def _attend_inside(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """Queries of the patches (B, M, H * W, D), keys and values of all tokens -> (B, M, H * W, D)."""
        batch, heads = q.shape[:2]
        rows, columns = -(-grid.height // self.size), -(-grid.width // self.size)
        padding = (0, 0, 0, columns * self.size - grid.width, 0, rows * self.size - grid.height)

        def split(y: Tensor) -> Tensor:
            """(B, M, H * W, D) -> (B, windows, M, size * size, D)."""
            y = F.pad(y.unflatten(2, grid), padding) if any(padding) else y.unflatten(2, grid)
            y = y.unflatten(3, (columns, self.size)).unflatten(2, (rows, self.size))
            return y.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(1, 2)

        def with_prefix(y: Tensor) -> Tensor:
            windows = split(y[:, :, self.prefix :])
            shared = y[:, None, :, : self.prefix].expand(-1, rows * columns, -1, -1, -1)
            return torch.cat((shared, windows), dim=3).flatten(0, 1)

        mask = None
        if any(padding):
            there = split(torch.ones(1, 1, grid.height * grid.width, 1, dtype=torch.bool, device=q.device))
            mask = F.pad(there.transpose(3, 4), (self.prefix, 0), value=True)  # (1, windows, 1, 1, P + size * size)
            mask = mask.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        out = F.scaled_dot_product_attention(split(q).flatten(0, 1), with_prefix(k), with_prefix(v), attn_mask=mask)
        out = out.view(batch, rows, columns, heads, self.size, self.size, -1).permute(0, 3, 1, 4, 2, 5, 6)
        return out.flatten(4, 5).flatten(2, 3)[:, :, : grid.height, : grid.width].flatten(2, 3)
