"""The ways in which files write a mask, read as polygons or COCO's run lengths, and repaired where they can be.

This module does not need torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from piip.data.sets.instances.numbers import LIMIT, number, whole

Rle = dict[str, Any]
Box = tuple[float, float, float, float]

# Pixels of the longest outline that is drawn: pycocotools takes 160 bytes for each, and ends the process beyond 2^31.
_LONGEST = 2_000_000
# Pixels by which corners of a rectangle may differ from those of its box, and a mask's size from that of its image.
_NEAR = 2


class BadMaskError(ValueError):
    """A segmentation that cannot be read; the message ends a sentence that begins with its annotation."""


class Mask(NamedTuple):
    """segmentation: polygons or run lengths, as `to_rle` takes them. extent: x1, y1, x2, y2 of what it covers."""

    segmentation: list[list[float]] | Rle
    extent: Box


def read_mask(
    segmentation: Any, box: Sequence[float] | None, size: tuple[int, int], repaired: Callable[[str], None]
) -> Mask:
    """What a file says of a mask in an image of a size (h, w).

    box: (x, y, w, h), for polygons that are two corners of it. repaired: is told the kind of each repair.
    Raises BadMaskError where nothing can be read.
    """
    if isinstance(segmentation, list):
        if len(segmentation) == 1 and isinstance(segmentation[0], dict):
            segmentation = segmentation[0]
        else:
            return _read_polygons(segmentation, box, size, repaired)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise BadMaskError("'segmentation' is neither a list of polygons nor a run-length mapping with 'counts'")
    rle = _read_runs(segmentation, size, repaired)
    x, y, w, h = mask_utils.toBbox(to_rle(rle, *size)).tolist()
    return Mask(rle, (x, y, x + w, y + h))


def to_rle(segmentation: list[list[float]] | Rle, height: int, width: int) -> Rle:
    """Compressed run lengths of a segmentation that was read; the parts of a polygon list are united."""
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": segmentation["counts"].encode()}


def decode(rles: list[Rle], height: int, width: int) -> NDArray[np.uint8]:
    """Masks (n, H, W) of zeros and ones."""
    if not rles:
        return np.zeros((0, height, width), dtype=np.uint8)
    # pycocotools returns (H, W, n) with every mask contiguous by columns.
    return np.ascontiguousarray(mask_utils.decode(rles).transpose(2, 0, 1))


def _read_polygons(
    parts: list[Any], box: Sequence[float] | None, size: tuple[int, int], repaired: Callable[[str], None]
) -> Mask:
    polygons, x1, y1, x2, y2 = [], math.inf, math.inf, -math.inf, -math.inf
    try:
        if len(parts) > 2 and len(parts[0]) == 2:
            raise TypeError
        sums = [sum(polygon) for polygon in parts]
    except (TypeError, OverflowError):
        parts = _to_polygons(parts, repaired)
        sums = [sum(polygon) for polygon in parts]
    for polygon, total in zip(parts, sums):
        if len(polygon) == 4 and box is not None and _is_diagonal(polygon, box):
            a, b, c, d = polygon
            polygon = [a, b, c, b, c, d, a, d]
            repaired("polygon of two corners of its box read as that rectangle")
        if len(polygon) < 6 or len(polygon) % 2:
            repaired("piece of a polygon below three corners, or with half a corner, left out")
            continue
        xs, ys = polygon[::2], polygon[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        # NaN compares as false, and hides from the least and the greatest unless it comes first.
        if not (left > -LIMIT and top > -LIMIT and right < LIMIT and bottom < LIMIT) or total != total:
            raise BadMaskError(f"'segmentation' holds a number beyond reason, {_beyond(polygon)}")
        # Of most polygons it is seen at a glance that their outline is short.
        if len(polygon) * (right - left + bottom - top) > _LONGEST and _outline(polygon) > _LONGEST:
            polygon = _clip(polygon, size)
            if len(polygon) < 6:
                continue
            if _outline(polygon) > _LONGEST:
                raise BadMaskError("'segmentation' goes to and fro too often for an outline to be drawn")
        x1, y1, x2, y2 = min(x1, left), min(y1, top), max(x2, right), max(y2, bottom)
        polygons.append(polygon)
    if not polygons:
        raise BadMaskError("'segmentation' has no polygon of three corners or more")
    return Mask(polygons, (x1, y1, x2, y2))


def _to_polygons(parts: list[Any], repaired: Callable[[str], None], *, inner: bool = False) -> list[list[float]]:
    """Lists of numbers from a flat list of them, from a list of points, and from numbers written as text.

    inner: these are parts of a list that was taken for one of polygons.
    """
    values = [number(part) for part in parts]
    numbers = [value for value in values if value is not None]
    if len(numbers) == len(parts):
        if not inner:
            repaired("flat list of numbers read as one polygon")
        if numbers != parts:
            repaired("polygon with numbers written as text read")
        return [numbers]
    if len(parts) > 2 and all(isinstance(part, list) and len(part) == 2 for part in parts):
        repaired("list of points read as one polygon")
        return _to_polygons([value for part in parts for value in part], repaired, inner=True)
    polygons = []
    for part in parts:
        if not isinstance(part, list):
            raise BadMaskError("'segmentation' must be a list of polygons, each a list of numbers")
        polygons += _to_polygons(part, repaired, inner=True)
    return polygons


def _is_diagonal(corners: Sequence[float], box: Sequence[float]) -> bool:
    """Whether two points (x1, y1, x2, y2) are opposite corners of a box (x, y, w, h)."""
    (left, right), (top, bottom) = sorted(corners[::2]), sorted(corners[1::2])
    pairs = ((left, box[0]), (top, box[1]), (right, box[0] + box[2]), (bottom, box[1] + box[3]))
    return all(abs(a - b) <= _NEAR for a, b in pairs)


def _outline(polygon: Sequence[float]) -> float:
    """The length in pixels, of each edge along its longer side."""
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum())


def _clip(polygon: Sequence[float], size: tuple[int, int]) -> list[float]:
    """What of a polygon lies in the image of this size (h, w) or as far around it (Sutherland and Hodgman, 1974)."""
    points = list(zip(polygon[::2], polygon[1::2]))
    for axis, sign, bound in ((0, -1, size[1]), (0, 1, 2 * size[1]), (1, -1, size[0]), (1, 1, 2 * size[0])):
        kept = []
        for a, b in zip(points, points[1:] + points[:1]):
            beyond_a, beyond_b = sign * a[axis] - bound, sign * b[axis] - bound
            if beyond_a <= 0:
                kept.append(a)
            if (beyond_a <= 0) != (beyond_b <= 0):
                share = beyond_a / (beyond_a - beyond_b)
                kept.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
        points = kept
    return [value for point in points for value in point]


def _beyond(numbers: Sequence[float]) -> str:
    return short(next(value for value in numbers if not -LIMIT < value < LIMIT))


def short(value: object) -> str:
    """The value for a message, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_runs(rle: dict[str, Any], size: tuple[int, int], repaired: Callable[[str], None]) -> Rle:
    """Run lengths that fill an image of this size."""
    counts, given = rle["counts"], rle.get("size")
    read = _uncompress(counts) if isinstance(counts, str) else [whole(count) for count in counts]
    runs = [run for run in read or [] if run is not None and run >= 0]
    if read is None or len(runs) != len(read) or not runs:
        raise BadMaskError("the run lengths are damaged")
    filled = sum(runs)
    if given != [*size]:
        given = [whole(side) for side in given] if isinstance(given, list) and len(given) == 2 else None
        near = given is not None and all(s is not None and abs(s - side) <= _NEAR for s, side in zip(given, size))
        if not near or given is None or filled != given[0] * given[1]:
            raise BadMaskError(f"the run lengths are for a size of {short(rle.get('size'))}, the image has {[*size]}")
        if given != [*size]:
            repaired("mask some pixels larger or smaller than its image cut or filled up")
            return _refit(runs, given, size)
    missing = size[0] * size[1] - filled
    if missing:
        # As from a mask that was edited or uploaded: what lacks is background at the end.
        if abs(missing) > size[0]:
            raise BadMaskError(f"the run lengths do not sum up to the {size[0] * size[1]} pixels of the image")
        repaired("run lengths some pixels too short or too long filled up with background or cut")
        runs = [*runs, *([0] if len(runs) % 2 == 0 else [])]
        runs[-1] += missing
        while len(runs) > 1 and runs[-1] < 0:
            last = runs.pop()
            runs[-1] += last
        return {"size": [*size], "counts": runs}
    return {"size": [*size], "counts": counts if isinstance(counts, str) else runs}


def _refit(runs: list[int], given: list[int], size: tuple[int, int]) -> Rle:
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(given[1], given[0]).T
    fitted = np.zeros(size, dtype=np.uint8, order="F")
    height, width = min(given[0], size[0]), min(given[1], size[1])
    fitted[:height, :width] = pixels[:height, :width]
    return {"size": [*size], "counts": mask_utils.encode(fitted)["counts"].decode()}


def _uncompress(counts: str) -> list[int] | None:
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
    return runs.tolist()
