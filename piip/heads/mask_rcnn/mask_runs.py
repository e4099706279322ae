"""Pasted masks as run lengths, without their pixels ever being in an image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip import host
from piip.heads.mask_rcnn.masks import PASTE_PIXELS, THRESHOLD, cell_weights, paste_masks, pixel_bounds
from piip.run_lengths import Rle, encode, encode_placed


@torch.no_grad()
def encode_pasted(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Rle]:
    """Compressed run lengths of the masks that `paste_masks` returns for probabilities (n, 28, 28), boxes (n, 4).

    size: (h, w) of the image.
    """
    if not host.is_host(boxes.device):
        return encode(paste_masks(probabilities, boxes, size))
    step = max(1, PASTE_PIXELS // max(1, size[0] * size[1]))
    with torch.autocast("cpu", enabled=False):
        parts = zip(probabilities.float().split(step), boxes.float().split(step), strict=True)
        return [rle for part in parts for rle in _encode_in_boxes(*part, size)]


def _encode_in_boxes(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Rle]:
    """Pastes each mask where its box is, column by column, each column followed by a pixel that is zero."""
    left, top, right, bottom = pixel_bounds(boxes, size).numpy().T.astype(np.int64)
    widths, heights = np.maximum(right - left, 0), np.maximum(bottom - top, 0) + 1
    columns, column_ends = _weights(boxes[:, 0], boxes[:, 2], left, widths)
    rows, row_ends = _weights(boxes[:, 1], boxes[:, 3], top, heights)
    rows[torch.from_numpy(row_ends - 1)] = 0
    ends = np.cumsum(widths * heights)
    starts = ends - widths * heights
    pixels = np.empty(ends[-1] if len(ends) else 0, dtype=bool)
    spans = zip(row_ends - heights, row_ends, column_ends - widths, column_ends, starts, ends)
    for mask, (row, row_end, column, column_end, start, end) in zip(probabilities, spans, strict=True):
        resampled = columns[column:column_end] @ (rows[row:row_end] @ mask).T
        # numpy compares ten times as many numbers a second as torch.
        np.greater_equal(resampled.view(-1).numpy(), np.float32(THRESHOLD), out=pixels[start:end])

    return encode_placed(pixels, left=left, top=top, widths=widths, heights=heights, size=size)


def _weights(
    low: Tensor, high: Tensor, first: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[Tensor, NDArray[np.int64]]:
    """Share of each mask cell in the rows (or columns) of pixels of all boxes (sum of lengths, 28); where each ends.

    low, high: ends of the boxes (n,); first: their first pixel (n,); lengths: their number of pixels (n,).
    """
    ends = np.cumsum(lengths)
    pixels = np.arange(int(lengths.sum())) + np.repeat(first - ends + lengths, lengths)
    repeats = torch.from_numpy(lengths)
    centres = torch.from_numpy(pixels).float() + 0.5
    return cell_weights(centres, low.repeat_interleave(repeats), high.repeat_interleave(repeats)), ends
