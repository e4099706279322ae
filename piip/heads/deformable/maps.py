"""A feature pyramid as one sequence of tokens, with the position of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Maps(NamedTuple):
    """L maps of a batch, one after the other, row by row: S tokens per image.

    shapes: (H, W) of every map. tokens: (B, S, C). padding: (B, S) bool, True outside of the image.
    positions: (B, S, C), sine encoding of the position within the image.
    centres: (B, S, 2), (x, y) of the cell's centre in [0, 1] of the image, beyond 1 in the padding.
    ratios: (B, L, 2), the share (x, y) of each map that the image covers.
    """

    shapes: list[tuple[int, int]]
    tokens: Tensor
    padding: Tensor
    positions: Tensor
    centres: Tensor
    ratios: Tensor

    @property
    def levels(self) -> list[int]:
        """Number of tokens of every map."""
        return [height * width for height, width in self.shapes]


def flatten(
    features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], *, stride: int, temperature: float
) -> Maps:
    """The maps of a pyramid as tokens.

    features: maps (B, C, H, W), finest first; stride: of the finest map.
    image_sizes: valid (h, w) of each image in pixels, or a single one for all.
    temperature: of the position encoding, see `sine_encoding`.
    """
    channels, device = features[0].shape[1], features[0].device
    canvas = [cells * stride for cells in features[0].shape[2:]]
    sizes = (
        torch.tensor(image_sizes, dtype=torch.float32).to(device, non_blocking=True).expand(features[0].shape[0], -1)
    )
    padding, positions, centres, ratios = [], [], [], []
    for x in features:
        height, width = x.shape[2:]
        rows, columns = (_covered(sizes[:, i], canvas[i], x.shape[2 + i]) for i in (0, 1))
        covered = rows[:, :, None] & columns[:, None, :]
        positions.append(_position(covered, channels, temperature).flatten(1, 2))
        padding.append(~covered.flatten(1))
        y, x_ = (
            (torch.arange(cells, device=device) + 0.5) / inside.sum(dim=1, keepdim=True)
            for cells, inside in ((height, rows), (width, columns))
        )
        grid = torch.stack([x_[:, None, :].expand_as(covered), y[:, :, None].expand_as(covered)], dim=-1)
        centres.append(grid.flatten(1, 2))
        ratios.append(torch.stack([columns.float().mean(dim=1), rows.float().mean(dim=1)], dim=-1))
    return Maps(
        shapes=[(x.shape[2], x.shape[3]) for x in features],
        tokens=torch.cat([x.flatten(2).transpose(1, 2) for x in features], dim=1),
        padding=torch.cat(padding, dim=1),
        positions=torch.cat(positions, dim=1),
        centres=torch.cat(centres, dim=1),
        ratios=torch.stack(ratios, dim=1),
    )


def _covered(size: Tensor, length: int, cells: int) -> Tensor:
    """Which of the cells (B, cells) along one axis lie on images of size (B,): those whose first pixel does."""
    first = (torch.arange(cells, device=size.device) * (length / cells)).floor()
    return first < size[:, None]


def _position(covered: Tensor, channels: int, temperature: float) -> Tensor:
    """Sine encoding (B, H, W, channels) of each cell's row, then its column, counted from 1 to the last covered one."""
    halves = []
    for dim in (1, 2):
        count = covered.cumsum(dim, dtype=torch.float32)
        share = count / (count.narrow(dim, -1, 1) + 1e-6)
        halves.append(sine_encoding(share, channels // 2, temperature))
    return torch.cat(halves, dim=-1)


def sine_encoding(x: Tensor, channels: int, temperature: float) -> Tensor:
    """Sines and cosines (..., channels), alternating, of numbers (...) in [0, 1], at ever lower frequencies.

    The wavelengths grow from 1 to nearly `temperature` (Vaswani et al., 2017, section 3.5).
    """
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=x.device) / channels
    angles = x[..., None] * (2 * math.pi) / temperature**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
