"""Polygons as COCO draws them, whatever lies outside the image.

pycocotools walks the whole outline in fifths of a pixel: a corner at 10^8 costs gigabytes, one beyond 4 * 10^8 the
process. Long outlines are therefore drawn here, with its arithmetic (`rleFrPoly` of maskApi.c), from the places alone
where they cross the middle of a column of the image. Both give the same mask, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

# Corners are rounded to this part of a pixel, and columns are crossed at the third of its five parts.
_SCALE, _MIDDLE = 5, 2
# Points of an outline, in fifths of a pixel, from which on it is drawn here: pycocotools takes 32 bytes for each.
_LONG = 1_000_000
# Crossings that are found at once; each takes some hundred bytes.
_CHUNK = 500_000


def polygon_rle(corners: Sequence[float], height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of one polygon: x and y by turns, of three corners or more, each below 2^31 in size."""
    # Of most polygons it is seen at a glance that their outline is short.
    if len(corners) // 2 * _SCALE * (max(corners) - min(corners)) <= _LONG:
        return mask_utils.frPyObjects([corners], height, width)[0]
    points = np.trunc(_SCALE * np.asarray(corners, dtype=np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    edges = np.concatenate([points, np.roll(points, -1, axis=0)], axis=1)
    if np.abs(edges[:, 2:] - edges[:, :2]).max(axis=1).sum() <= _LONG:
        return mask_utils.frPyObjects([corners], height, width)[0]
    # Whether the polygon begins or ends at a pixel, these being numbered down the columns; twice cancels out.
    toggles = np.zeros(height * width + 1, dtype=bool)
    for column, row in _crossings(edges, width):
        row = np.ceil(np.clip((row + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
        np.logical_xor.at(toggles, column * height + row, True)
    ends = np.flatnonzero(toggles[:-1])
    counts = np.diff(ends, prepend=0, append=height * width)
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def crossings(corners: Sequence[float], width: int) -> float:
    """How many columns of the image the edges of a polygon cross, together: what it takes to draw it."""
    x = np.clip(np.asarray(corners[: len(corners) // 2 * 2 : 2], dtype=np.float64), 0, width)
    return float(np.abs(np.diff(x)).sum())


def _crossings(edges: NDArray[np.int64], width: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Where edges (n, 4) of x1, y1, x2, y2 cross the middle of columns 0 to width - 1: those, and y in fifths."""
    # Walked as pycocotools does: along the longer side, from its lower to its higher end.
    flat = np.abs(edges[:, 2] - edges[:, 0]) >= np.abs(edges[:, 3] - edges[:, 1])
    turned = np.where(flat, edges[:, 0] > edges[:, 2], edges[:, 1] > edges[:, 3])
    edges = np.where(turned[:, None], edges[:, [2, 3, 0, 1]], edges)
    for walk, part in ((_row_of_flat, edges[flat]), (_row_of_steep, edges[~flat])):
        left, right = np.minimum(part[:, 0], part[:, 2]), np.maximum(part[:, 0], part[:, 2])
        first = np.maximum(-((_MIDDLE - left) // _SCALE), 0)
        count = np.clip((right - 1 - _MIDDLE) // _SCALE + 1, 0, width) - first
        part, first, count = part[count > 0], first[count > 0], count[count > 0]
        step = max(_CHUNK // width, 1)
        for start in range(0, len(part), step):
            some = count[start : start + step]
            edge = np.repeat(np.arange(start, start + len(some)), some)
            column = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(some) - some, some)
            yield column, walk(part[edge], _SCALE * column + _MIDDLE)


def _row_of_flat(edges: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lower y at x and x + 1 of edges that are at least as long in x as in y."""
    slope = (edges[:, 3] - edges[:, 1]) / (edges[:, 2] - edges[:, 0])
    rows = (np.trunc(edges[:, 1] + slope * (at - edges[:, 0]) + 0.5) for at in (x, x + 1))
    return np.minimum(*rows).astype(np.int64)


def _row_of_steep(edges: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last y before edges that are longer in y step from x to x + 1, or back."""
    slope = (edges[:, 2] - edges[:, 0]) / (edges[:, 3] - edges[:, 1])
    # The step between the two is found by halving: rounded as pycocotools does, no formula gives it exactly.
    before, after = np.zeros_like(x), edges[:, 3] - edges[:, 1]
    while np.any(after - before > 1):
        middle = (before + after) // 2
        beyond = edges[:, 0] + slope * middle + 0.5 >= x + 1
        stepped = beyond == (slope > 0)
        before, after = np.where(stepped, before, middle), np.where(stepped, middle, after)
    return edges[:, 1] + before
