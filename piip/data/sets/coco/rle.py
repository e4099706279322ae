"""COCO's three ways to write a mask (polygons, run lengths, compressed run lengths), and masks as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from piip.data.sets.coco.polygons import polygon_rle

Rle = dict[str, Any]


def to_rle(segmentation: list[list[float]] | Rle, height: int, width: int) -> Rle:
    """Compressed run lengths of a checked segmentation; the parts of a polygon list are united."""
    if isinstance(segmentation, list):
        return mask_utils.merge([polygon_rle(polygon, height, width) for polygon in segmentation])
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": segmentation["counts"].encode()}


def decode(rles: list[Rle], height: int, width: int) -> Tensor:
    """Masks (n, H, W) uint8."""
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    # pycocotools returns (H, W, n) with every mask contiguous by columns.
    return torch.from_numpy(np.ascontiguousarray(mask_utils.decode(rles).transpose(2, 0, 1)))


def covers(counts: list[Any] | str, pixels: int) -> bool:
    """Whether run lengths, compressed or not, describe exactly that many pixels.

    pycocotools does not check it: it leaves the pixels beyond the last run undefined.
    """
    if isinstance(counts, str):
        runs = _uncompress(counts)
        return runs is not None and bool(np.all(runs >= 0)) and int(runs.sum()) == pixels
    # In Python's numbers, since those of a file may be of any size.
    return all(type(count) is int and count >= 0 for count in counts) and sum(counts) == pixels


def _uncompress(counts: str) -> np.ndarray[Any, Any] | None:
    """The runs in COCO's compressed string, None where it is damaged.

    A number is five bits per character, lowest first: bit 5 says that another character follows, bit 4 of the last one
    is the sign. From the fourth number on it is the difference to the run two before.
    """
    characters = np.frombuffer(counts.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(characters) or characters.min() < 0 or characters.max() > 0x3F or characters[-1] & 0x20:
        return None
    ends = np.flatnonzero(characters & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # more than the 32 bits of a count
        return None
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((characters & 0x1F) << shifts, starts)
    runs -= np.where(characters[ends] & 0x10, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
