"""Masks as COCO's compressed run lengths, from the pixels at which they begin and end.

Columns of pixels lie one behind the other; runs of zeros and ones alternate, the first of zeros and perhaps empty. What
is written down is the runs' lengths, from the fourth on less the length two before, each in as many characters of five
bits as it needs, lowest first: 48 + the bits + 32 if another character follows; bit 4 of the last is the sign.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip import host

Rle = dict[str, Any]

# Pixels that are looked at together, over all masks.
_PIXELS = 2**26
# Least numbers that need another character, of those that are not negative.
_STEPS = tuple(2 ** (5 * characters - 1) for characters in range(1, 7))


def encode(masks: Tensor) -> list[Rle]:
    """Compressed run lengths of masks (n, h, w) bool on any device, equal to those of `pycocotools.mask.encode`.

    Only the pixels where a run begins leave the device.
    """
    count, height, width = masks.shape
    pixels = height * width
    found = [_encode(part) for part in masks.split(max(1, _PIXELS // max(1, pixels)))] if count else []
    return [rle for part in found for rle in part]


def _encode(masks: Tensor) -> list[Rle]:
    count, height, width = masks.shape
    places = find_changes(masks.mT.reshape(-1), each=height * width)
    owners, places = np.divmod(places, max(1, height * width))
    return compress(owners, places, count=count, size=(height, width))


def find_changes(pixels: Tensor, *, each: int | None = None) -> NDArray[np.int64]:
    """Indices, on the host, of the elements of bool pixels (n,) that differ from the one before, the first from zero.

    each: every so many pixels something new begins, before which there is zero.
    """
    changed = torch.empty_like(pixels)
    torch.ne(pixels[1:], pixels[:-1], out=changed[1:])
    changed[:: each or max(1, len(pixels))] = pixels[:: each or max(1, len(pixels))]
    if host.is_host(changed.device):
        return np.flatnonzero(changed.numpy())
    return changed.nonzero()[:, 0].int().cpu().numpy().astype(np.int64)


def encode_placed(
    pixels: NDArray[np.bool_],
    *,
    left: NDArray[np.int64],
    top: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    size: tuple[int, int],
) -> list[Rle]:
    """The run lengths of n masks of a size (h, w), of which only the parts are given where they are not zero.

    pixels: of all parts (sum of widths * heights,), each column by column, its last row zero. left, top: where each
    part lies (n,). widths, heights: its columns and rows (n,), with the last row, which may lie beyond the mask.
    """
    ends = np.cumsum(widths * heights)
    starts = ends - widths * heights
    places = find_changes(torch.from_numpy(pixels))
    owners = np.searchsorted(ends, places, side="right")
    column, row = np.divmod(places - starts[owners], heights[owners])
    places = (left[owners] + column) * size[0] + top[owners] + row
    # A run that goes on in the next column, or ends with the image, has no end here.
    joined = (places[1:] == places[:-1]) & (owners[1:] == owners[:-1])
    kept = places < size[0] * size[1]
    kept[1:] &= ~joined
    kept[:-1] &= ~joined
    return compress(owners[kept], places[kept], count=len(left), size=size)


def compress(owners: NDArray[np.int64], places: NDArray[np.int64], *, count: int, size: tuple[int, int]) -> list[Rle]:
    """The run lengths of `count` masks of a size (h, w), from where zeros turn to ones and back.

    owners: mask (k,) of each turn, ascending. places: its pixel (k,), counted down the columns, ascending in a mask.
    """
    turns = np.bincount(owners, minlength=count)
    # A mask has one run more than turns: the last ends with the image.
    lasts = np.cumsum(turns + 1) - 1
    firsts = lasts - turns
    ends = np.full(len(places) + count, size[0] * size[1])
    ends[np.arange(len(places)) + owners] = places
    starts = np.empty_like(ends)
    starts[1:] = ends[:-1]
    starts[firsts] = 0
    runs = ends - starts

    values = runs.copy()
    values[2:] -= runs[:-2]
    for order in range(3):
        early = firsts[turns >= order] + order
        values[early] = runs[early]
    magnitudes = values ^ (values >> 63)
    largest = magnitudes.max(initial=0)
    lengths = np.ones(len(values), dtype=np.int64)
    for step in _STEPS[: bisect_right(_STEPS, largest)]:
        lengths += magnitudes >= step
    stops = np.cumsum(lengths)
    text = np.empty(lengths.sum(), dtype=np.uint8)
    at, rest = stops - lengths, np.arange(len(values))
    for number in range(lengths.max(initial=0)):
        rest = rest[lengths[rest] > number]
        more = lengths[rest] > number + 1
        text[at[rest] + number] = 48 + (values[rest] >> 5 * number & 0x1F) + (more << 5)
    stops = stops[lasts].tolist()
    counts = text.tobytes()
    return [{"size": list(size), "counts": counts[start:stop]} for start, stop in pairwise([0, *stops])]
