"""Multi-scale deformable attention as a module, with the interface and the state dict of Deformable-DETR."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from piip.ops._checks import check_shape
from piip.ops.deform_attn import deform_attn


class MSDeformAttn(nn.Module):
    """Deformable attention with its projections (Zhu et al., 2021, section 4.1).

    Constructor, state dict and forward take Deformable-DETR's code unchanged. PIIP (section 3.2) narrows the values:

    d_model: channels of queries and output.
    n_levels, n_heads, n_points: maps, attention heads, and sampled points per head and map.
    ratio: width of the values as a share of d_model.
    d_feat: channels of the attended features; d_model by default.
    Raises ValueError for sizes that are not positive and widths that are not divisible by n_heads.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        ratio: float = 1.0,
        *,
        d_feat: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "n_levels": n_levels, "n_heads": n_heads, "n_points": n_points}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        if d_model % n_heads:
            raise ValueError(f"d_model must be divisible by n_heads, got {d_model} and {n_heads}")
        d_value = int(d_model * ratio) if math.isfinite(ratio) else 0
        if d_value < 1 or d_value % n_heads:
            raise ValueError(f"d_model * ratio must be a positive multiple of n_heads, got {d_value} and {n_heads}")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.ratio = ratio
        self.d_feat = d_model if d_feat is None else d_feat
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(self.d_feat, d_value)
        self.output_proj = nn.Linear(d_value, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in evenly spread directions, point i at a distance of i + 1 cells, all with equal weight."""
        angle = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        grid = direction[:, None, None] * distance[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.n_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        input_level_start_index: Sequence[int] | Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        query: (B, Q, d_model).
        reference_points: (B or 1, Q, L or 1, 2 or 4) in [0, 1], padding included.
        input_flatten: (B, S, d_feat), the maps one after the other.
        input_spatial_shapes: L (H, W) pairs. Host integers are best: reading a GPU tensor waits for the device.
        input_level_start_index: not needed, since the maps follow each other; taken for compatibility.
        input_padding_mask: (B, S), True where a cell is padding.
        Returns (B, Q, d_model).
        """
        check_shape("query", query, (None, None, self.d_model), "(B, Q, d_model)")
        batch, queries, _ = query.shape
        check_shape("input_flatten", input_flatten, (batch, None, self.d_feat), "(B, S, d_feat)")
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            if input_padding_mask.dtype != torch.bool or input_padding_mask.shape != input_flatten.shape[:2]:
                raise ValueError(
                    f"input_padding_mask must be bool of shape (B, S) = {tuple(input_flatten.shape[:2])}, "
                    f"got {input_padding_mask.dtype} of {tuple(input_padding_mask.shape)}"
                )
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        offsets = self.sampling_offsets(query).view(batch, queries, self.n_heads, self.n_levels, self.n_points, 2)
        logits = self.attention_weights(query).view(batch, queries, self.n_heads, self.n_levels * self.n_points)
        value = value.unflatten(-1, (self.n_heads, -1))
        return self.output_proj(deform_attn(value, input_spatial_shapes, reference_points, offsets, logits))
