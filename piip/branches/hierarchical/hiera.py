"""Hiera (Ryali et al., 2023) as a branch: its blocks compute on rows of tokens that are sorted by window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import hiera
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import Branch, Tokens
from piip.branches.hierarchical.config import HierarchicalConfig
from piip.branches.hierarchical.hierarchical import resize_to_multiple
from piip.branches.timm_names import timm_network
from piip.features import FeatureSpec


class Hiera(Branch):
    """timm's network without what follows its blocks; parameter names are timm's.

    Between groups of blocks the tokens are put back at their places in the map, which changes no value. Learned
    positions are resampled to the grid; those of a window, where there are such, are repeated.
    """

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        network: Any = timm.create_model(config.model.partition(".")[0], num_classes=0, drop_path_rate=config.drop_path)
        self.model, self.checkpoint_activations = config.model, config.checkpoint_activations
        self.patch_embed: Any = network.patch_embed
        self.pos_embed: nn.Parameter = network.pos_embed
        self.pos_embed_win: nn.Parameter | None = network.pos_embed_win
        self.blocks: nn.ModuleList = network.blocks
        halved = [0]  # how often the grid is halved before block i, and after the last
        for block in network.blocks:
            halved.append(halved[-1] + (block.attn.q_stride > 1))
        self.halved = halved
        self.rounds = len(network.stage_ends) - 1  # of sorting: a window has 2 ** rounds tokens on a side at first
        self.multiple = network.patch_stride[0] << self.rounds
        self.specs = [
            FeatureSpec(block.dim_out, network.patch_stride[0] << times)
            for block, times in zip(network.blocks, halved[1:], strict=True)
        ]

    def units(self) -> list[nn.Module]:
        """The blocks; the first of a stage halves the grid."""
        return list(self.blocks)

    def embed(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, W) -> (B, H/4, W/4, C), positions added; images are first resized to whole windows."""
        x = self.patch_embed.proj(resize_to_multiple(images, self.multiple))
        grid = list(x.shape[2:])
        if self.pos_embed_win is None:
            positions = resample_abs_pos_embed(self.pos_embed, grid, num_prefix_tokens=0)
            positions = positions.view(1, *grid, -1)
        else:
            windows = [side // window for side, window in zip(grid, self.pos_embed_win.shape[2:], strict=True)]
            whole = F.interpolate(self.pos_embed, size=grid, mode="bicubic", antialias=True)
            positions = (whole + self.pos_embed_win.tile(windows)).permute(0, 2, 3, 1)
        return Tokens(x.permute(0, 2, 3, 1) + positions.to(x.dtype))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        """Applies blocks start to stop - 1 to a feature map (B, H, W, C) -> (B, H', W', C'), see `specs`."""
        before, after = self.halved[start], self.halved[stop]
        height, width = (side >> (after - before) for side in x.map.shape[1:3])
        row = _sort(x.map, self.rounds - before)
        for block in self.blocks[start:stop]:
            if self.checkpoint_activations and torch.is_grad_enabled():
                row = checkpoint(block, row, use_reentrant=False)
            else:
                row = block(row)
        return Tokens(_unsort(row, self.rounds - after, height, width))

    def fit_pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's own reading of published files."""
        return dict(hiera.checkpoint_filter_fn(dict(tensors), timm_network(self.model)))

    def layer_of(self, parameter: str) -> int | None:
        """0 for the embedding, i + 1 for block i."""
        parts = parameter.split(".")
        return int(parts[1]) + 1 if parts[0] == "blocks" else 0


def _sort(x: Tensor, rounds: int) -> Tensor:
    """A map (B, H, W, C) -> its tokens (B, H * W, C), those first whose row and column end in zeros.

    In every round tokens are sorted by the last binary digits of row and column that are left, so that four tokens that
    are pooled next are a quarter of the row apart.
    """
    sides = [side >> rounds for side in x.shape[1:3]]
    digits = [2] * rounds
    x = x.unflatten(2, (sides[1], *digits)).unflatten(1, (sides[0], *digits))
    rows, columns = range(1, rounds + 2), range(rounds + 2, 2 * rounds + 3)
    order = [axis for pair in zip(reversed(rows), reversed(columns), strict=True) for axis in pair]
    return x.permute(0, *order, x.dim() - 1).flatten(1, -2)


def _unsort(x: Tensor, rounds: int, height: int, width: int) -> Tensor:
    """The inverse of `_sort`: tokens (B, H * W, C) -> a map (B, H, W, C)."""
    x = x.unflatten(1, (*[2] * (2 * rounds), height >> rounds, width >> rounds))
    rows, columns = range(1, 2 * rounds + 2, 2), range(2, 2 * rounds + 3, 2)
    x = x.permute(0, *reversed(rows), *reversed(columns), x.dim() - 1)
    return x.flatten(1, rounds + 1).flatten(2, rounds + 2)
